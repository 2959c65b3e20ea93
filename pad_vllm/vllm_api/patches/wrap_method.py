"""Wraps a method of a class of vLLM's, once in a process: the wrapper gets the original method.

In: a class, or a module whose function is looked up in it at every call; a name, a function. Knows neither
what is wrapped nor why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def wrap_method(cls: Any, name: str, wrapper: Callable[..., Any]) -> bool:
    """Replace a method by one that calls `wrapper(original, self, *args, **kwargs)`.

    A second wrapper goes around the first. The same wrapper is never applied twice.

    Args:
        cls: the class; its subclasses that do not override the method change too. Or a module: `self` is
            then the first argument of its function.
        name: of the method.
        wrapper: a module-level function: a new lambda each time would be applied each time.

    Returns:
        False where the method already has this wrapper, or where the class has no such method.
    """
    original = getattr(cls, name, None)
    applied: tuple[Any, ...] = getattr(original, "pad_wrappers", ())
    if original is None or wrapper in applied:
        return False

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(original, self, *args, **kwargs)

    method.pad_wrappers = (*applied, wrapper)  # type: ignore[attr-defined]
    setattr(cls, name, method)
    return True
