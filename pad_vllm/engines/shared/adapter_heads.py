"""The heads of several adapters stacked in one set of tensors; adapters come and go while a server runs.

In: heads A [D, r, H], B [D, H, r] and C [D, H] or None, float32. Out: new tensors, since a step may still
read the old ones. The head of a dimension that no adapter has is zero. Knows no adapter and no request.
"""

from __future__ import annotations

import torch
from torch import Tensor

HeadTensors = tuple[Tensor, Tensor, Tensor | None]
"""A [D, r, H], B [D, H, r] and C [D, H] or None, float32; D dimensions, head rank r."""


def heads_on_device(heads: HeadTensors, device: torch.device) -> HeadTensors:
    """The heads on `device`, copied where they are on another one."""
    A, B, C = heads
    return A.to(device), B.to(device), None if C is None else C.to(device)


def insert_heads(heads: HeadTensors, offset: int, new: HeadTensors) -> HeadTensors:
    """Write the heads of n new dimensions over those from `offset` on.

    Args:
        heads: D dimensions of rank r.
        offset: index of the first new dimension, 0 to any.
        new: n dimensions of rank q, on the same device.

    Returns:
        max(D, offset + n) dimensions of rank max(r, q); what neither has is zero. C is None if neither has
        it.
    """
    (A, B, C), (new_A, new_B, new_C) = heads, new
    num_new, new_rank, _ = new_A.shape
    (D, r, H), end = A.shape, offset + num_new
    D, r = max(D, end), max(r, new_rank)
    wide_A, wide_B = _padded(A, D, r, H, like=A), _padded(B, D, H, r, like=A)
    wide_C = None if C is None and new_C is None else _padded(C, D, H, like=A)
    for tensor in (wide_A, wide_B, wide_C):
        if tensor is not None:
            tensor[offset:end] = 0
    wide_A[offset:end, :new_rank], wide_B[offset:end, :, :new_rank] = new_A, new_B
    if wide_C is not None and new_C is not None:
        wide_C[offset:end] = new_C
    return wide_A, wide_B, wide_C


def remove_heads(heads: HeadTensors, offset: int, count: int, num_used: int) -> HeadTensors:
    """Set the heads of some dimensions to zero, and drop unused dimensions at the end.

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

    A, B, C = heads
    return without(A), without(B), None if C is None else without(C)


def _padded(small: Tensor | None, *shape: int, like: Tensor) -> Tensor:
    """Zeros of a shape [...], with `small` in their first corner."""
    padded = torch.zeros(shape, dtype=like.dtype, device=like.device)
    if small is not None:
        padded[tuple(slice(size) for size in small.shape)] = small
    return padded
