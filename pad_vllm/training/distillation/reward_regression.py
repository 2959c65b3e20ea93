"""The loss of learning the teacher's rewards, and the share of them that a reward explains.

    error(t) = sum over the base's candidates of p_B(a) (R(a) - R*(a))^2      both centred under p_B
    loss     = mean over tokens and dimensions of v(t) error(t) / variance    v(t) = 1 + 3 exp(-t / 2)
    share    = 1 - sum of errors / sum of p_B R*^2

The first tokens of an answer decide it, are a hundredth of all, and the most uncertain: hence v. A tenfold
weight, or batches of first tokens alone, cost the rest more than they gave.
Shapes: n tokens, K candidates, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pad_vllm.persrm import PersRM
from pad_vllm.training.objective.candidate_rewards import (
    RewardFunction,
    base_mean_square,
    persrm_rewards,
    subtract_base_mean,
)
from pad_vllm.training.objective.fork_cache import CachedResponse
from pad_vllm.training.objective.loss_module import zero_loss


def squared_errors(phi: Tensor, z_B: Tensor, wanted: Tensor) -> Tensor:
    """Squared errors under the base: phi, wanted [n, K, D], wanted centred, z_B [n, K] -> [n, D]."""
    return base_mean_square(subtract_base_mean(phi, z_B) - wanted, z_B)


def token_weights(count: int) -> Tensor:
    """v [n] of an answer's tokens."""
    return 1 + 3 * torch.exp(-torch.arange(count) / 2)


@dataclass(frozen=True)
class RegressionExample:
    """One prompt's answers, and other prompts of which the first token alone is taught."""

    answers: Sequence[CachedResponse]
    firsts: Sequence[CachedResponse]


class RewardRegression(nn.Module):
    """Summed loss of a micro-batch over `whole` prompts of the optimiser's step.

    variance [D]: the teacher's. typical: the weights of a prompt's answers, summed, on average.
    """

    def __init__(self, model: PersRM, variance: Tensor, mean_weight: float) -> None:
        super().__init__()
        self.model, self.typical = model, mean_weight
        # A dimension that the teacher is silent on has nothing to teach, and no scale.
        self.variance = variance.clamp_min(1e-6).to(model.head_A.device)

    def forward(self, batch: Sequence[RegressionExample], whole: int) -> Tensor:
        if not batch:
            return zero_loss(self)
        # Apart, for the first tokens' sequences are short and would be padded to the answers'.
        answers = [response for example in batch for response in example.answers]
        firsts = [response for example in batch for response in example.firsts]
        total = sum(self._loss(some) for some in (answers, firsts) if some)
        return torch.as_tensor(total) / (self.typical * whole)

    def _loss(self, responses: Sequence[CachedResponse]) -> Tensor:
        phi = persrm_rewards(self.model, responses)
        found = squared_errors(phi, torch.cat([r.z_B for r in responses]), _wanted(responses))
        v = torch.cat([token_weights(len(r.z_B)) for r in responses]).to(found.device)
        return (v * (found / self.variance).mean(-1)).sum()


def _wanted(responses: Sequence[CachedResponse]) -> Tensor:
    return torch.cat([r.teacher_rewards for r in responses if r.teacher_rewards is not None])


@torch.no_grad()
def explained_shares(
    rewards: RewardFunction, prompts: Iterable[Sequence[CachedResponse]], most: int = 10**9
) -> Tensor:
    """[D] of the teacher's rewards explained, over the first `most` tokens of every answer."""
    left, whole = torch.zeros(()), torch.zeros(())
    for responses in prompts:
        keep = torch.cat([torch.arange(len(r.z_B)) < most for r in responses])
        z_B, wanted = torch.cat([r.z_B for r in responses]), _wanted(responses)
        left = left + squared_errors(rewards(responses), z_B, wanted).cpu()[keep].sum(0)
        whole = whole + base_mean_square(wanted, z_B).cpu()[keep].sum(0)
    return 1 - left / whole.clamp_min(1e-12)
