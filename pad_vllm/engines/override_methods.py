"""Overrides methods of a loaded module in place: the object, its parameters and their names stay.

In: a module and a mixin class whose methods call `super()`. Out: the same module; its class is now a
subclass of the mixin and of the class that it had. Weight reload, sleep mode and saving find the parameters
they expect.
"""

from __future__ import annotations

from functools import cache
from typing import Any


def mix_in(module: Any, mixin: Any) -> None:
    """Change the class of `module`: the mixin's methods come before those of its present class."""
    cls: Any = type(module)
    module.__class__ = _class_with_mixin(mixin, cls)


@cache
def _class_with_mixin(mixin: Any, cls: Any) -> Any:
    return type(f"{mixin.__name__}{cls.__name__}", (mixin, cls), {"__module__": mixin.__module__})
