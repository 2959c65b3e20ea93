"""The heads of several adapters stacked in one set of tensors; adapters come and go while a server runs.

In: HeadTensors, float32. Out: new tensors, since a step may still read the old ones. The head of a dimension
that no adapter has is zero; beside gated heads others get gates of zeros, a factor of 1. Knows no adapter and
no request.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pad_vllm.guidance import HeadTensors


def insert_heads(heads: HeadTensors, offset: int, new: HeadTensors) -> HeadTensors:
    """Write the heads of n new dimensions over those from `offset` on.

    Args:
        heads: D dimensions of rank r.
        offset: index of the first new dimension, 0 to any.
        new: n dimensions of rank q, on the same device.

    Returns:
        max(D, offset + n) dimensions of rank max(r, q); what neither has is zero. C is None if neither has
        it, and so is G.
    """
    (A, B, C, G), (new_A, new_B, new_C, new_G) = heads, new
    num_new, new_rank, _ = new_A.shape
    (D, r, H), end = A.shape, offset + num_new
    D, r = max(D, end), max(r, new_rank)

    def with_new(old: Tensor | None, own: Tensor | None, *shape: int) -> Tensor:
        wide = _padded(old, D, *shape, like=A)
        wide[offset:end] = _padded(own, num_new, *shape, like=A)
        return wide

    return HeadTensors(
        with_new(A, new_A, r, H),
        with_new(B, new_B, H, r),
        None if C is None and new_C is None else with_new(C, new_C, H),
        None if G is None and new_G is None else with_new(G, new_G, r, H),
    )


def remove_heads(heads: HeadTensors, offset: int, count: int, num_used: int) -> HeadTensors:
    """Set the heads of some dimensions to zero, and drop unused dimensions at the end.

    G is None once the gates that stay are all zero, so that no step computes them; to see that waits for the
    device.

    Args:
        heads: D dimensions.
        offset: index of the first one to remove.
        count: how many to remove.
        num_used: how many dimensions stay in the tensors: one more than the last index in use.
    """

    def without(tensor: Tensor) -> Tensor:
        remaining = tensor.clone()
        remaining[offset : offset + count] = 0
        return remaining[:num_used].contiguous()

    remaining = heads.mapped(without)
    if remaining.G is not None and not remaining.G.any():
        return remaining._replace(G=None)
    return remaining


def _padded(small: Tensor | None, *shape: int, like: Tensor) -> Tensor:
    """Zeros of a shape [...], with `small` in their first corner."""
    padded = torch.zeros(shape, dtype=like.dtype, device=like.device)
    if small is not None:
        padded[tuple(slice(size) for size in small.shape)] = small
    return padded
