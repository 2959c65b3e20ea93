"""Another function in the place of a method of vLLM's, the original in its hands; each once a process.

In: a class, a method's name, a function. It knows neither what is wrapped nor why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def wrap_method(cls: Any, name: str, wrapper: Callable[..., Any]) -> bool:
    """Have `by(original, self, ...)` called in a method's place.

    False where it is already, or where the class has no such method; another `by` is put around the first.
    """
    original = getattr(cls, name, None)
    before: tuple[Any, ...] = getattr(original, "pad_by", ())
    if original is None or wrapper in before:
        return False

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(original, self, *args, **kwargs)

    method.pad_by = (*before, wrapper)  # type: ignore[attr-defined]
    setattr(cls, name, method)
    return True
