"""vLLM's attention layers: their constructor arguments, to make a second one; the rows of a batch.

Leans on the constructor of `Attention` (probed at `register()`) and on the attention metadata of a forward
(vllm/forward_context.py). Knows nothing of forks or rewards.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from pad_vllm.vllm_api.vllm_names import Attention


class AttentionRecord:
    """The constructor arguments of each Attention of a model, to make another like it."""

    def __init__(self) -> None:
        self._signature = inspect.signature(Attention.__init__)
        self._calls: dict[str, inspect.BoundArguments] = {}

    def record_call(self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the arguments of one constructor call."""
        bound = self._signature.bind(attention, *args, **kwargs)
        self._calls[bound.arguments.get("prefix", "")] = bound

    def copy_attention(self, attention: Any, *, suffix: str) -> Any:
        """A second Attention with the arguments of `attention`; its layer name gets `suffix`."""
        bound = self._calls[attention.layer_name]
        # All that it says to an Attention are scales of a quantised cache. No checkpoint has any for this
        # one, and the parameters that wait for them would be missed when weights are read again.
        bound.arguments["quant_config"] = None
        bound.arguments["prefix"] = attention.layer_name + suffix
        bound.arguments["attn_backend"] = attention.attn_backend
        twin = Attention(*bound.args[1:], **bound.kwargs)
        twin.process_weights_after_loading(attention.dtype)
        return twin


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


def last_token_indices() -> Tensor | None:
    """Inside a forward, the index of each batch row's last token among the T packed ones; None where the
    attention backend's metadata does not say (vllm/forward_context.py).
    """
    from vllm.forward_context import get_forward_context, is_forward_context_available

    if not is_forward_context_available():
        return None
    metadata = get_forward_context().attn_metadata
    if not isinstance(metadata, dict) or not metadata:
        return None
    starts = getattr(next(iter(metadata.values())), "query_start_loc", None)
    return None if starts is None else starts[1:] - 1
