"""One natural policy-gradient step in closed form: sums over tokens in, heads and constants out.

    e~_t = e_{a_t} - sum_a pi(a | h_t) e_a       over the candidates, pi at the temperature of sampling
    C    = mean r_t e~_t x_t^T                   x_t = (h_t, k), a constant k beside the state
    M    = (mean Cov_pi(e) + s_e I)^-1 C (mean x x^T + l s_h I)^-1         s: mean of the diagonal

R(a) = <e_a, M x> is the reward that raises the expected credit most for its divergence from the base
(Kakade 2001). M's part for the state is cut to the heads' rank, best in the metric of the step. Credit of D
dimensions gives D such steps from the same sums.
Shapes: n tokens, K candidates, D dimensions, H hidden size, r head rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pad_vllm.guidance import HeadTensors
from pad_vllm.persrm import PersRM
from pad_vllm.training.objective.fork_cache import CachedResponse
from pad_vllm.training.objective.singular_values import largest_singular_values

STATE_PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Penalties l of the state to choose from. The less the state tells beyond the constant, the larger the best
one: for scores that are sums over words, large.
"""


@dataclass(frozen=True)
class PolicyGradientStep:
    """The heads that one step makes, as an adapter has them. Float32."""

    A: Tensor  # [D, r, H]
    B: Tensor  # [D, H, r]
    C: Tensor  # [D, H] the constant beside the state
    constant_only: Tensor  # [D, H] the best constant without any state

    @classmethod
    def select(
        cls, steps: Sequence[PolicyGradientStep], numbers: Sequence[int]
    ) -> PolicyGradientStep:
        """One step made of several. numbers: for each dimension the index of the step to take it from."""
        by_field = zip(*(vars(step).values() for step in steps), strict=True)
        return cls(
            *(torch.stack([field[n][d] for d, n in enumerate(numbers)]) for field in by_field)
        )

    @property
    def heads(self) -> HeadTensors:
        """A, B and C: no step makes gates."""
        return HeadTensors(self.A, self.B, self.C)


@dataclass
class StepStatistics:
    """Sums over tokens, from which the step is solved. On the model's device, float32."""

    tokens: Tensor  # [] number of tokens
    xx: Tensor  # [H + 1, H + 1] sum of x x^T, x = (h, 1)
    covariance: Tensor  # [H, H] sum of the covariances of e under pi
    policy_gradient: Tensor  # [D, H, H + 1] sum of r e~ x^T

    @classmethod
    def zeros(
        cls, dimensions: int, hidden: int, device: torch.device | None = None
    ) -> StepStatistics:
        """The sums over no tokens; device: None is the CPU."""
        shapes = (), (hidden + 1, hidden + 1), (hidden, hidden), (dimensions, hidden, hidden + 1)
        return cls(*(torch.zeros(shape, device=device) for shape in shapes))

    def add(
        self, model: PersRM, responses: Sequence[CachedResponse], credit: Tensor, temperature: float
    ) -> None:
        """Add the n tokens of answers.

        Args:
            model: Has the embeddings.
            responses: The answers; n tokens together.
            credit: [n, D], answer after answer.
            temperature: Temperature at which the base drew the answers.
        """
        e = model.embeddings(torch.cat([r.ids for r in responses]).long())
        p, taken = _policy(responses, temperature)
        mean = torch.einsum("nk,nkh->nh", p, e)
        centred = _gather_taken(e, taken) - mean
        x = _with_one(torch.cat([r.h_B for r in responses]))
        weighted = (e * p.unsqueeze(-1).sqrt()).flatten(0, 1)
        self.tokens += len(x)
        self.xx += x.T @ x
        self.covariance += weighted.T @ weighted - mean.T @ mean
        for dimension, r in enumerate(credit.to(x).T):
            self.policy_gradient[dimension] += (centred * r[:, None]).T @ x

    def map_sums(self, function: Callable[[Tensor], Tensor]) -> StepStatistics:
        """`function` of every sum; Accelerate's reduce adds up those of all workers."""
        return StepStatistics(*map(function, vars(self).values()))

    def solve(self, rank: int, penalties: Sequence[float]) -> list[PolicyGradientStep]:
        """One step for each penalty of the state, its heads cut to `rank`."""
        xx, covariance, gradient = (
            part.double() / self.tokens for part in (self.xx, self.covariance, self.policy_gradient)
        )
        state = xx.diagonal()[:-1]
        k = state.sum().sqrt()  # as strong as the state: hardly penalised
        scale = torch.cat([torch.ones_like(state), k[None]])
        outputs = _add_to_diagonal(covariance, covariance.diagonal().mean())
        step = torch.linalg.solve(outputs, gradient * scale)
        constant_only, steps = (step[..., -1] / k).float(), []
        for penalty in penalties:
            inputs = _add_to_diagonal(xx * scale[:, None] * scale, penalty * state.mean())
            M = torch.linalg.solve(inputs, step.transpose(-1, -2)).transpose(-1, -2)
            A, B = _cut_to_rank(M[..., :-1], outputs, inputs[:-1, :-1], rank)
            steps.append(PolicyGradientStep(A, B, (k * M[..., -1]).float(), constant_only))
        return steps


def taken_reward_advantages(
    phi: Tensor, responses: Sequence[CachedResponse], temperature: float
) -> Tensor:
    """Rewards of the tokens taken less the candidates' mean under pi.

    Args:
        phi: [n, K, D] rewards of the candidates of all tokens, answer after answer.
        responses: The answers; n tokens together.
        temperature: Temperature of pi.

    Returns:
        [n, D].
    """
    p, taken = _policy(responses, temperature)
    return _gather_taken(phi, taken) - torch.einsum("nk,nkd->nd", p, phi)


def _gather_taken(values: Tensor, taken: Tensor) -> Tensor:
    """values [n, K, X] at the taken candidates' indices [n] -> [n, X]."""
    return values.gather(1, taken[:, None, None].expand(-1, 1, values.shape[-1])).squeeze(1)


def _policy(responses: Sequence[CachedResponse], temperature: float) -> tuple[Tensor, Tensor]:
    """pi [n, K] over the candidates, and the index of the taken one among them [n]."""
    p = (torch.cat([r.z_B for r in responses]).float() / temperature).softmax(-1)
    return p, torch.cat([r.chosen for r in responses]).long()


def _with_one(h: Tensor) -> Tensor:
    return torch.nn.functional.pad(h.float(), (0, 1), value=1.0)


def _add_to_diagonal(square: Tensor, value: Tensor) -> Tensor:
    return square + torch.diag(value.expand(len(square)))


def _cut_to_rank(M: Tensor, outputs: Tensor, inputs: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [D, r, H] and B [D, H, r] with B A nearest to M [D, H, H] in the metric of the step.

    outputs, inputs: [H, H], the metric on both sides of M.
    """
    left, right = torch.linalg.cholesky(outputs), torch.linalg.cholesky(inputs)
    U, S, Vt = largest_singular_values(left.T @ M @ right, rank)
    half = S.sqrt()
    A = torch.linalg.solve_triangular(right, half[..., None] * Vt, upper=False, left=False)
    B = torch.linalg.solve_triangular(left.T, U * half[:, None], upper=True)
    return A.float(), B.float()
