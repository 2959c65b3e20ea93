"""The heads of several adapters side by side: put in and taken out while a server runs.

In: heads A [D, r, H], B [D, H, r] and C [D, H] or None, float32. Out: new ones, since a step may still read
the old. A head that is nobody's is zero. Knows no adapter and no request.
"""

from __future__ import annotations

import torch
from torch import Tensor

HeadTensors = tuple[Tensor, Tensor, Tensor | None]


def heads_on_device(heads: HeadTensors, device: torch.device) -> HeadTensors:
    """On the device, where they are not."""
    A, B, C = heads
    return A.to(device), B.to(device), None if C is None else C.to(device)


def insert_heads(heads: HeadTensors, place: int, more: HeadTensors) -> HeadTensors:
    """`more`, n of them, from `place` on, over what is there; D and r grow where they have to."""
    (A, B, C), (a, b, c) = heads, more
    n, q, _ = a.shape
    (D, r, H), end = A.shape, place + n
    D, r = max(D, end), max(r, q)
    constants = None if C is None and c is None else _wide(C, D, H, like=A)
    wide = _wide(A, D, r, H, like=A), _wide(B, D, H, r, like=A), constants
    for made in wide:
        if made is not None:
            made[place:end] = 0
    wide[0][place:end, :q], wide[1][place:end, :, :q] = a, b
    if constants is not None and c is not None:
        constants[place:end] = c
    return wide


def remove_heads(heads: HeadTensors, place: int, count: int, num_used: int) -> HeadTensors:
    """Without `count` of them from `place` on; left: how many places are in use, of which the last is."""
    kept = [None if one is None else one.clone() for one in heads]
    for one in kept:
        if one is not None:
            one[place : place + count] = 0
    A, B, C = (None if one is None else one[:num_used].contiguous() for one in kept)
    assert A is not None
    assert B is not None
    return A, B, C


def _wide(small: Tensor | None, *shape: int, like: Tensor) -> Tensor:
    """Zeros of a shape [...], `small` in their first corner."""
    made = torch.zeros(shape, dtype=like.dtype, device=like.device)
    if small is not None:
        made[tuple(slice(size) for size in small.shape)] = small
    return made
