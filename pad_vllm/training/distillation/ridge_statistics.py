"""Sums over the answers' tokens, from which the heads start and against which results are compared.

In: h_B and d* = h_instructed - h_B of tokens, which are not kept. Out: the ridge regression of d* on h_B in
closed form, cut to the heads' rank; the best constant direction; the teacher's variance. The sums do not
depend on the order of the tokens, so workers add theirs up, and a killed run goes on from those on disk.
Shapes: n tokens, D dimensions, H hidden size, r head rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pad_vllm.training.loop.training_checkpoint import save_tensors
from pad_vllm.training.objective.singular_values import largest_singular_values

RIDGE_PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Penalties to choose from, in mean squares of a coordinate of h_B. Few answers, or an instruction that the
base hardly follows, need a stronger one. With penalties below 0.1 no training step improves the heads: the
first steps undo what they learned of rare directions.
"""

_FILE_NAME_OF = {"examples": "lessons"}
"""Field -> its tensor's name in files, where they differ: files of unfinished runs must stay readable."""


@dataclass
class RidgeStatistics:
    """The sums, on the device of what is added, float32."""

    examples: Tensor  # [] int64, how many examples are in the sums
    tokens: Tensor  # [] int64
    hh: Tensor  # [H, H] sum of h h^T
    dh: Tensor  # [D, H, H] sum of d* h^T
    d: Tensor  # [D, H] sum of d*
    power: Tensor  # [D] sum of the variances of the teacher's rewards over the candidates

    @classmethod
    def zeros(
        cls, dimensions: int, hidden: int, device: torch.device | None = None
    ) -> RidgeStatistics:
        """The sums over no tokens; device: None is the CPU."""
        return cls(
            examples=torch.zeros((), dtype=torch.long),
            tokens=torch.zeros((), dtype=torch.long),
            hh=torch.zeros(hidden, hidden, device=device),
            dh=torch.zeros(dimensions, hidden, hidden, device=device),
            d=torch.zeros(dimensions, hidden, device=device),
            power=torch.zeros(dimensions, device=device),
        )

    def add(self, h: Tensor, d: Tensor, power: Tensor) -> None:
        """Add n tokens; `examples` is the caller's to count.

        Args:
            h: [n, H] h_B.
            d: [D, n, H] d*.
            power: [n, D] variance of the teacher's rewards over the candidates.
        """
        self.tokens += len(h)
        self.hh += h.T @ h
        self.dh += d.transpose(-1, -2) @ h
        self.d += d.sum(1)
        self.power += power.sum(0)

    def to(self, device: torch.device) -> RidgeStatistics:
        """The same sums on a device."""
        return RidgeStatistics(*(tensor.to(device) for tensor in vars(self).values()))

    def __add__(self, other: RidgeStatistics) -> RidgeStatistics:
        """The sums over the tokens of both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return RidgeStatistics(*(a + b for a, b in pairs))

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        save_tensors(path, {_FILE_NAME_OF.get(k, k): tensor for k, tensor in vars(self).items()})

    @classmethod
    def load(cls, path: Path) -> RidgeStatistics | None:
        """Read what `save` wrote; None if there is no file."""
        if not path.is_file():
            return None
        tensors = load_file(path)
        fields = cls.__dataclass_fields__
        return cls(**{name: tensors[_FILE_NAME_OF.get(name, name)] for name in fields})

    def teacher_variance(self) -> Tensor:
        """[D] in squared logits: what a reward of 0 leaves unexplained, per token."""
        return self.power / self.tokens.clamp_min(1)

    def mean_direction(self) -> Tensor:
        """[D, H] mean of d*: as a reward, a bias over the vocabulary that no state changes."""
        return self.d / self.tokens.clamp_min(1)

    def ridge_maps(self, penalty: float) -> Tensor:
        """[D, H, H] float64: M of the ridge regression d* = M h. penalty: one of RIDGE_PENALTIES."""
        return torch.cholesky_solve(
            self.dh.double().transpose(-1, -2), self._root(penalty)
        ).transpose(-1, -2)

    def low_rank_heads(self, rank: int, penalties: Sequence[float]) -> tuple[Tensor, Tensor]:
        """The heads of at most that rank with the least ridge error over the tokens; a penalty per dimension.

        Returns A [D, r, H] and B [D, H, r], float32.
        """
        heads = [
            self._low_rank_head(rank, dh, penalty)
            for dh, penalty in zip(self.dh.double(), penalties, strict=True)
        ]
        A, B = (torch.stack(tensors) for tensors in zip(*heads, strict=True))
        return A, B

    def _low_rank_head(self, rank: int, dh: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        root = self._root(penalty)
        # M L: its best approximation of low rank is that of M for whitened h.
        scaled = torch.linalg.solve_triangular(root, dh.T, upper=False).T
        U, S, Vt = largest_singular_values(scaled, rank)
        half = S.sqrt()
        A = torch.linalg.solve_triangular(root, half[:, None] * Vt, upper=False, left=False)
        return A.float(), (U * half).float()

    def _root(self, penalty: float) -> Tensor:
        """[H, H] float64: L with L L^T = sum of h h^T, plus the penalty on the diagonal."""
        hh = self.hh.double()
        ridge = penalty * hh.diagonal().mean()
        return torch.linalg.cholesky(hh + torch.diag(ridge.expand(len(hh))))
