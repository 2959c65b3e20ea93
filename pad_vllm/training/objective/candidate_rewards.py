"""Rewards of the base's candidates at every token: of a PersRM or of simpler models, and their spread.

In: cached responses. Out: rewards of all their tokens, and statistics of any such rewards. The methods that
look at every candidate (distillation/, credit/) share it. Shapes: n tokens of all responses, one response
after the other, K candidates, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from pad_vllm.persrm import PersRM
from pad_vllm.training.objective.fork_cache import CachedResponse
from pad_vllm.training.objective.loss_module import trunk_hidden

RewardFunction = Callable[[Sequence[CachedResponse]], Tensor]
"""Responses -> phi [n, K, D] of all their tokens."""


def subtract_base_mean(rewards: Tensor, z_B: Tensor) -> Tensor:
    """Rewards [n, K, D] less their mean under the base, softmax(z_B [n, K]).

    A reward that all candidates share changes no probability.
    """
    p = z_B.float().softmax(-1)
    return rewards - torch.einsum("nk,nkd->nd", p, rewards).unsqueeze(1)


def base_mean_square(rewards: Tensor, z_B: Tensor) -> Tensor:
    """Mean square of rewards [n, K, D] under the base, softmax(z_B [n, K]) -> [n, D]."""
    return torch.einsum("nk,nkd->nd", z_B.float().softmax(-1), rewards**2)


def persrm_rewards(model: PersRM, responses: Sequence[CachedResponse]) -> Tensor:
    """phi [n, K, D] of the PersRM, trunk and heads. Gradients flow."""
    hidden = torch.cat(trunk_hidden(model, responses))
    return model.features(torch.cat([r.h_B for r in responses]), hidden, _candidate_ids(responses))


def head_rewards(model: PersRM, responses: Sequence[CachedResponse]) -> Tensor:
    """phi [n, K, D] of the PersRM's heads without its trunk: h_T = h_B."""
    h_B = torch.cat([r.h_B for r in responses])
    return model.features(h_B, h_B, _candidate_ids(responses))


def linear_map_rewards(model: PersRM, maps: Tensor, responses: Sequence[CachedResponse]) -> Tensor:
    """Rewards of linear maps of the base's hidden state, R(a) = <e_a, M h_B>.

    Args:
        model: for the output embedding e.
        maps: M [D, H, H] float32, on the model's device.
        responses: cached.

    Returns:
        [n, K, D].
    """
    h_B = torch.cat([r.h_B for r in responses]).float()
    directions = torch.einsum("doh,nh->ndo", maps, h_B)
    return torch.einsum("nkh,ndh->nkd", model.embeddings(_candidate_ids(responses)), directions)


def constant_rewards(
    model: PersRM, directions: Tensor, responses: Sequence[CachedResponse]
) -> Tensor:
    """Rewards of one direction for all hidden states, R(a) = <e_a, d>: a bias over the vocabulary.

    Args:
        model: for the output embedding e.
        directions: d [D, H], on the model's device.
        responses: cached.

    Returns:
        [n, K, D].
    """
    return torch.einsum("nkh,dh->nkd", model.embeddings(_candidate_ids(responses)), directions)


@torch.no_grad()
def reward_spreads(rewards: RewardFunction, prompts: Iterable[Sequence[CachedResponse]]) -> Tensor:
    """[D] standard deviation of rewards over the candidates under the base, in logits, on the CPU.

    prompts: the responses of each.
    """
    count, squares = 0, torch.zeros(())
    for responses in prompts:
        z_B = torch.cat([r.z_B for r in responses])
        centred = subtract_base_mean(rewards(responses), z_B)
        squares = squares + base_mean_square(centred, z_B).cpu().sum(0)
        count += len(z_B)
    return (squares / max(count, 1)).sqrt().clamp_min(1e-6)


def scale_constants_to_one_logit(
    model: PersRM, constants: Tensor, prompts: Iterable[Sequence[CachedResponse]]
) -> Tensor:
    """Scale directions so that their rewards spread by one logit over the base's candidates.

    Args:
        model: for the output embedding.
        constants: [D, H], one direction for all hidden states, per dimension.
        prompts: the responses that the spread is measured on, by prompt.

    Returns:
        [D, H] on the CPU.
    """
    rewards = partial(constant_rewards, model, constants.to(model.head_A))
    return constants.cpu() / reward_spreads(rewards, prompts)[:, None]


def _candidate_ids(responses: Sequence[CachedResponse]) -> Tensor:
    """[n, K] int64."""
    return torch.cat([r.ids for r in responses]).long()
