"""Sums over the answers' tokens, from which the heads start and against which shares are measured.

In: h_B and d* = h_told - h_B of some tokens, token by token never kept. Out: the ridge regression of d* on
h_B in closed form, cut to the heads' rank; the best constant direction; the teacher's variance. The sums
are the same in any order, so workers add theirs up, and a killed run goes on from those on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pad_vllm.training.loop.training_checkpoint import save_tensors

RIDGE_PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Penalties to choose from, in mean squares of a coordinate of h_B: few answers, or a wish that the base
hardly hears, want a stronger one. Under a weaker one than the first no step of training improves the heads:
the first undo what they learned of rare directions.
"""


@dataclass
class RidgeStatistics:
    """H hidden size, D dimensions."""

    lessons: Tensor  # [] how many lessons are in the sums
    tokens: Tensor  # []
    hh: Tensor  # [H, H] sum of h h^T
    dh: Tensor  # [D, H, H] sum of d* h^T
    d: Tensor  # [D, H] sum of d*
    power: Tensor  # [D] sum of the teacher's variances over the candidates

    @classmethod
    def zeros(cls, count: int, hidden: int) -> RidgeStatistics:
        return cls(
            torch.zeros((), dtype=torch.long),
            torch.zeros((), dtype=torch.long),
            torch.zeros(hidden, hidden),
            torch.zeros(count, hidden, hidden),
            torch.zeros(count, hidden),
            torch.zeros(count),
        )

    def add(self, h: Tensor, d: Tensor, power: Tensor) -> None:
        """Tokens of some answers: h [n, H], d [D, n, H], power [n, D]."""
        self.tokens += len(h)
        self.hh += h.T @ h
        self.dh += d.transpose(-1, -2) @ h
        self.d += d.sum(1)
        self.power += power.sum(0)

    def __add__(self, other: RidgeStatistics) -> RidgeStatistics:
        return RidgeStatistics(
            *(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def save(self, path: Path) -> None:
        save_tensors(path, vars(self))

    @classmethod
    def load(cls, path: Path) -> RidgeStatistics | None:
        """None where none were saved."""
        return cls(**load_file(path)) if path.is_file() else None

    def teacher_variance(self) -> Tensor:
        """[D] the teacher's, in squared logits: what a reward of nothing leaves unexplained."""
        return self.power / self.tokens.clamp_min(1)

    def mean_direction(self) -> Tensor:
        """[D, H] the mean d*: a bias over the vocabulary, which no state changes."""
        return self.d / self.tokens.clamp_min(1)

    def ridge_maps(self, ridge: float) -> Tensor:
        """[D, H, H] M of the ridge regression d* = M h, in float64. ridge: of RIDGES."""
        return torch.cholesky_solve(
            self.dh.double().transpose(-1, -2), self._root(ridge)
        ).transpose(-1, -2)

    def low_rank_heads(self, rank: int, ridges: Sequence[float]) -> tuple[Tensor, Tensor]:
        """A [D, r, H], B [D, H, r]: the maps of at most that rank whose errors over the tokens are least, a
        penalty a dimension.
        """
        found = [self._head(rank, *both) for both in zip(self.dh.double(), ridges, strict=True)]
        A, B = (torch.stack(some) for some in zip(*found, strict=True))
        return A, B

    def _head(self, rank: int, dh: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        root = self._root(ridge)
        # M L, whose best cut is that of M where h is white
        scaled = torch.linalg.solve_triangular(root, dh.T, upper=False).T
        U, S, Vt = torch.linalg.svd(scaled, full_matrices=False)
        half = S[:rank].sqrt()
        A = torch.linalg.solve_triangular(root, half[:, None] * Vt[:rank], upper=False, left=False)
        return A.float(), (U[:, :rank] * half).float()

    def _root(self, ridge: float) -> Tensor:
        """L with L L^T = sum of h h^T and the penalty."""
        hh = self.hh.double()
        penalty = ridge * hh.diagonal().mean()
        return torch.linalg.cholesky(hh + penalty * torch.eye(len(hh), dtype=hh.dtype))
