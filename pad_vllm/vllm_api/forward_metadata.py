"""What vLLM says about the forward that runs: where each row's tokens are (vllm/forward_context.py).

Call it inside a forward. Knows nothing of forks or rewards.
"""

from __future__ import annotations

from torch import Tensor


def last_token_indices() -> Tensor | None:
    """[rows] indices of each batch row's last token among the T packed ones; None where the attention
    backend's metadata has no such tensor.
    """
    from vllm.forward_context import get_forward_context, is_forward_context_available

    if not is_forward_context_available():
        return None
    metadata = get_forward_context().attn_metadata
    if not isinstance(metadata, dict) or not metadata:
        return None
    starts = getattr(next(iter(metadata.values())), "query_start_loc", None)
    return None if starts is None else starts[1:] - 1
