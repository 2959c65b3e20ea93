"""Records how vLLM constructs a model's attention layers, to construct a second one like each.

Uses the constructor of `Attention`, which startup_probe.py checks at `register()`. Knows nothing of forks or
rewards.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pad_vllm.vllm_api.vllm_names import Attention


class AttentionRecord:
    """The constructor arguments of each Attention of a model, by layer name."""

    def __init__(self) -> None:
        self._signature = inspect.signature(Attention.__init__)
        self._calls: dict[str, inspect.BoundArguments] = {}

    def record_call(self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Store the arguments of one constructor call.

        Args:
            attention: the object that is constructed.
            args: positional arguments, without `self`.
            kwargs: keyword arguments.
        """
        bound = self._signature.bind(attention, *args, **kwargs)
        self._calls[bound.arguments.get("prefix", "")] = bound

    def copy_attention(self, attention: Any, *, suffix: str, backend: Any = None) -> Any:
        """A second Attention with the arguments of another.

        Args:
            attention: the first one.
            suffix: appended to its layer name.
            backend: an attention backend in the place of its own.
        """
        bound = self._calls[attention.layer_name]
        # A quantisation config gives an Attention only the scales of a quantised cache. No checkpoint has
        # scales for this copy, and parameters that wait for them would be missed when weights are reloaded.
        bound.arguments["quant_config"] = None
        bound.arguments["prefix"] = attention.layer_name + suffix
        bound.arguments["attn_backend"] = backend or attention.attn_backend
        copy = Attention(*bound.args[1:], **bound.kwargs)
        copy.process_weights_after_loading(attention.dtype)
        return copy


@contextmanager
def recorded_attention() -> Iterator[AttentionRecord]:
    """While open, records the constructor arguments of every Attention."""
    record, original = AttentionRecord(), Attention.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        record.record_call(self, args, kwargs)
        original(self, *args, **kwargs)

    Attention.__init__ = __init__
    try:
        yield record
    finally:
        Attention.__init__ = original
