"""The loss of regressing on the teacher's rewards, and the share of them that a reward function explains.

    error(t) = sum over the base's candidates of p_B(a) (R(a) - R*(a))^2      both centred under p_B
    loss     = mean over tokens and dimensions of v(t) error(t) / variance    v(t) = 1 + 3 exp(-t / 2)
    share    = 1 - sum of errors / sum of p_B R*^2

The first tokens of an answer decide it, but are a hundredth of all tokens and the most uncertain: hence v. A
tenfold weight, or batches of first tokens only, made the other tokens worse by more than they gained.
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


def squared_errors(phi: Tensor, z_B: Tensor, teacher_rewards: Tensor) -> Tensor:
    """error(t) of every token and dimension: the mean under the base of the squared difference.

    Args:
        phi: [n, K, D] rewards; a constant over the candidates does not matter.
        z_B: [n, K] the base's logits of the candidates.
        teacher_rewards: [n, K, D] R*, centred under the base.

    Returns:
        [n, D].
    """
    return base_mean_square(subtract_base_mean(phi, z_B) - teacher_rewards, z_B)


def token_weights(count: int) -> Tensor:
    """v [n] of the `count` tokens of an answer."""
    return 1 + 3 * torch.exp(-torch.arange(count) / 2)


@dataclass(frozen=True)
class RegressionExample:
    """What a step sees of one training prompt; all responses have the teacher's rewards."""

    answers: Sequence[CachedResponse]  # of the prompt
    first_tokens: Sequence[CachedResponse]  # answers of one token, of other prompts


class RewardRegression(nn.Module):
    """The loss as a module: `forward` returns a micro-batch's share of the loss of an optimiser step.

    Args:
        model: The model in training.
        variance: [D] variance of the teacher's rewards over the candidates, in squared logits.
        mean_weight: Sum of the token weights of a prompt's answers, averaged over prompts.
    """

    def __init__(self, model: PersRM, variance: Tensor, mean_weight: float) -> None:
        super().__init__()
        self.model, self.mean_weight = model, mean_weight
        # A dimension without any teacher rewards teaches nothing and has no scale.
        self.variance = variance.clamp_min(1e-6).to(model.head_A.device)

    def forward(self, batch: Sequence[RegressionExample], prompts_in_step: int) -> Tensor:
        """[] summed loss of the micro-batch, divided by the prompts of the whole step."""
        if not batch:
            return zero_loss(self)
        # In two batches: the short sequences of first tokens would be padded to the answers' length.
        answers = [response for example in batch for response in example.answers]
        first_tokens = [response for example in batch for response in example.first_tokens]
        losses = [self._loss(responses) for responses in (answers, first_tokens) if responses]
        return torch.as_tensor(sum(losses)) / (self.mean_weight * prompts_in_step)

    def _loss(self, responses: Sequence[CachedResponse]) -> Tensor:
        phi = persrm_rewards(self.model, responses)
        z_B = torch.cat([r.z_B for r in responses])
        errors = squared_errors(phi, z_B, _teacher_rewards(responses))
        v = torch.cat([token_weights(len(r.z_B)) for r in responses]).to(errors.device)
        return (v * (errors / self.variance).mean(-1)).sum()


def _teacher_rewards(responses: Sequence[CachedResponse]) -> Tensor:
    return torch.cat([r.teacher_rewards for r in responses if r.teacher_rewards is not None])


@torch.no_grad()
def explained_shares(
    rewards: RewardFunction, prompts: Iterable[Sequence[CachedResponse]], max_tokens: int = 10**9
) -> Tensor:
    """Share of the teacher's rewards that a reward function explains.

    Args:
        rewards: The function.
        prompts: For each prompt its responses, with the teacher's rewards.
        max_tokens: How many tokens of every response count, from the first.

    Returns:
        [D] on the CPU; 1 is all, 0 as much as no reward at all.
    """
    unexplained, total = torch.zeros(()), torch.zeros(())
    for responses in prompts:
        counted = torch.cat([torch.arange(len(r.z_B)) < max_tokens for r in responses])
        z_B, wanted = torch.cat([r.z_B for r in responses]), _teacher_rewards(responses)
        errors = squared_errors(rewards(responses), z_B, wanted)
        unexplained = unexplained + errors.cpu()[counted].sum(0)
        total = total + base_mean_square(wanted, z_B).cpu()[counted].sum(0)
    return 1 - unexplained / total.clamp_min(1e-12)
