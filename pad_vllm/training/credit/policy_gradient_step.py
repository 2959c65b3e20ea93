"""One natural policy-gradient step in closed form: sums over tokens in, heads and constants out.

    e~_t = e_{a_t} - sum_a pi(a | h_t) e_a       over the candidates, pi at the temperature that drew
    C    = mean r_t e~_t x_t^T                   x_t = (h_t, k), a constant k beside the state
    M    = (mean Cov_pi(e) + s_e I)^-1 C (mean x x^T + l s_h I)^-1         s: mean of the diagonal

R(a) = <e_a, M x> is the reward that raises the expected credit most for its divergence from the base
(Kakade 2001). M's part for the state is cut to the heads' rank where the metric is that of the step. Credit
of D dimensions gives D such steps from the same sums. H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pad_vllm.persrm import PersRM
from pad_vllm.training.objective.fork_cache import CachedResponse

STATE_PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)
"""l, of the state: the less it says beside the constant, the larger. For scores of words that is much."""


@dataclass(frozen=True)
class PolicyGradientStep:
    """In the adapter's terms; `alone` is the best constant without any state."""

    A: Tensor  # [D, r, H]
    B: Tensor  # [D, H, r]
    C: Tensor  # [D, H]
    constant_only: Tensor  # [D, H]

    @classmethod
    def select(
        cls, solved: Sequence[PolicyGradientStep], numbers: Sequence[int]
    ) -> PolicyGradientStep:
        """Of each dimension the one of that number."""
        parts = zip(*(vars(one).values() for one in solved), strict=True)
        return cls(*(torch.stack([p[n][d] for d, n in enumerate(numbers)]) for p in parts))

    @property
    def heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """As PersRM.heads."""
        return self.A, self.B, self.C


@dataclass
class StepStatistics:
    """Of tokens."""

    tokens: Tensor  # []
    xx: Tensor  # [H + 1, H + 1] of (h, 1)
    covariance: Tensor  # [H, H] of e under pi
    policy_gradient: Tensor  # [D, H, H + 1] of r e~ (h, 1)^T

    @classmethod
    def zeros(cls, dimensions: int, hidden: int) -> StepStatistics:
        return cls(
            torch.zeros(()),
            torch.zeros(hidden + 1, hidden + 1),
            torch.zeros(hidden, hidden),
            torch.zeros(dimensions, hidden, hidden + 1),
        )

    def add(
        self, model: PersRM, responses: Sequence[CachedResponse], credit: Tensor, temperature: float
    ) -> None:
        """Tokens of some answers, one after the other; credit [n, D]."""
        e = model.embeddings(torch.cat([r.ids for r in responses]).long())
        p, taken = _drawn(responses, temperature)
        mean = torch.einsum("nk,nkh->nh", p, e)
        turned = _of(e, taken) - mean
        x = _with_one(torch.cat([r.h_B for r in responses]))
        weighted = (e * p.unsqueeze(-1).sqrt()).flatten(0, 1)
        self.tokens += len(x)
        self.xx += (x.T @ x).cpu()
        self.covariance += (weighted.T @ weighted - mean.T @ mean).cpu()
        for dimension, r in enumerate(credit.to(x).T):
            self.policy_gradient[dimension] += ((turned * r[:, None]).T @ x).cpu()

    def map_sums(self, function: Callable[[Tensor], Tensor]) -> StepStatistics:
        """Of every sum; what: Accelerate's reduce, which adds those of all workers up."""
        return StepStatistics(*map(function, vars(self).values()))

    def solve(self, rank: int, penalties: Sequence[float]) -> list[PolicyGradientStep]:
        """One for each penalty of the state."""
        xx, covariance, gained = (
            part.double() / self.tokens for part in (self.xx, self.covariance, self.policy_gradient)
        )
        state = xx.diagonal()[:-1]
        k = state.sum().sqrt()  # as strong as the state: hardly penalised
        scale = torch.cat([torch.ones_like(state), k[None]])
        words = _penalised(covariance, covariance.diagonal().mean())
        step = torch.linalg.solve(words, gained * scale)
        alone, found = (step[..., -1] / k).float(), []
        for penalty in penalties:
            inputs = _penalised(xx * scale[:, None] * scale, penalty * state.mean())
            M = torch.linalg.solve(inputs, step.transpose(-1, -2)).transpose(-1, -2)
            A, B = _cut(M[..., :-1], words, inputs[:-1, :-1], rank)
            found.append(PolicyGradientStep(A, B, (k * M[..., -1]).float(), alone))
        return found


def taken_reward_advantages(
    phi: Tensor, responses: Sequence[CachedResponse], temperature: float
) -> Tensor:
    """Rewards phi [n, K, D] of the tokens taken less their mean under pi -> [n, D]."""
    p, taken = _drawn(responses, temperature)
    return _of(phi, taken) - torch.einsum("nk,nkd->nd", p, phi)


def _of(rows: Tensor, taken: Tensor) -> Tensor:
    """rows [n, K, ...], places [n] -> [n, ...]."""
    return rows.gather(1, taken[:, None, None].expand(-1, 1, rows.shape[-1])).squeeze(1)


def _drawn(responses: Sequence[CachedResponse], temperature: float) -> tuple[Tensor, Tensor]:
    """pi [n, K] over the candidates, and the place of the taken one among them [n]."""
    p = (torch.cat([r.z_B for r in responses]).float() / temperature).softmax(-1)
    return p, torch.cat([r.chosen for r in responses]).long()


def _with_one(h: Tensor) -> Tensor:
    return torch.nn.functional.pad(h.float(), (0, 1), value=1.0)


def _penalised(square: Tensor, by: Tensor) -> Tensor:
    return square + by * torch.eye(len(square), dtype=square.dtype)


def _cut(M: Tensor, words: Tensor, inputs: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """M [D, H, H] as B A of at most that rank: the best in the metric of the step."""
    left, right = torch.linalg.cholesky(words), torch.linalg.cholesky(inputs)
    U, S, Vt = torch.linalg.svd(left.T @ M @ right, full_matrices=False)
    half = S[:, :rank].sqrt()
    A = torch.linalg.solve_triangular(
        right, half[..., None] * Vt[:, :rank], upper=False, left=False
    )
    B = torch.linalg.solve_triangular(left.T, U[..., :rank] * half[:, None], upper=True)
    return A.float(), B.float()
