"""The largest singular values of a matrix and their vectors, which is all that heads of a low rank need.

In: matrices. Out: their best approximations of a rank, as U, S, V^T. A whole decomposition of a matrix of the
hidden size of a large base takes minutes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MORE, _ITERATIONS = 32, 8
"""Vectors beyond the rank, and power iterations, of the randomised method (Halko, Martinsson, Tropp 2011)."""


def largest_singular_values(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [..., m, r], S [..., r] and V^T [..., r, n] of the largest singular values, the same each time.

    matrix: [..., m, n]; r is the smaller of `rank`, m and n. Exact where r is not far below them.
    """
    smaller = min(matrix.shape[-2:])
    rank = min(rank, smaller)
    if 4 * (rank + _MORE) > smaller:
        U, S, Vt = torch.linalg.svd(matrix, full_matrices=False)
        return U[..., :rank], S[..., :rank], Vt[..., :rank, :]
    with torch.random.fork_rng(_devices(matrix), device_type=matrix.device.type):
        torch.manual_seed(0)
        U, S, V = torch.svd_lowrank(matrix, q=rank + _MORE, niter=_ITERATIONS)
    return U[..., :rank], S[..., :rank], V[..., :rank].transpose(-1, -2)


def _devices(matrix: Tensor) -> list[torch.device]:
    """Whose random numbers are drawn beside the CPU's."""
    return [] if matrix.device.type == "cpu" else [matrix.device]
