"""Overrides methods of a loaded module in place: the object, its parameters and their names stay.

In: a module and a mixin whose methods call `super()`. Out: the same module, its class now the mixin before
the class that it had. Weight reload, sleep mode and saving find the parameters they expect.
"""

from __future__ import annotations

from functools import cache
from typing import Any


def mix_in(module: Any, mixin: Any) -> None:
    """Put the mixin's methods before those of the module's class."""
    cls: Any = type(module)
    module.__class__ = _mixed(mixin, cls)


@cache
def _mixed(mixin: Any, cls: Any) -> Any:
    return type(f"{mixin.__name__}{cls.__name__}", (mixin, cls), {"__module__": mixin.__module__})
