"""What rewards are over the base's candidates: of a PersRM or of one direction, centred, their spread.

In: cached responses. Out: rewards of all their tokens, figures of any such rewards. What is shared by the
teachers that look at every candidate (taught/, credit/). Shapes: n tokens, K candidates, D dimensions.
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
    """rewards [n, K, D] less their mean under the base, z_B [n, K]: what all share steers nothing."""
    p = z_B.float().softmax(-1)
    return rewards - torch.einsum("nk,nkd->nd", p, rewards).unsqueeze(1)


def base_mean_square(rewards: Tensor, z_B: Tensor) -> Tensor:
    """Mean squares under the base: rewards [n, K, D], z_B [n, K] -> [n, D]."""
    return torch.einsum("nk,nkd->nd", z_B.float().softmax(-1), rewards**2)


def persrm_rewards(model: PersRM, responses: Sequence[CachedResponse]) -> Tensor:
    """phi [n, K, D] of all tokens of the responses, one after the other."""
    hidden = torch.cat(trunk_hidden(model, responses))
    return model.features(torch.cat([r.h_B for r in responses]), hidden, _ids(responses))


def head_rewards(model: PersRM, responses: Sequence[CachedResponse]) -> Tensor:
    """The same of the heads alone, h_T = h_B."""
    h = torch.cat([r.h_B for r in responses])
    return model.features(h, h, _ids(responses))


def linear_map_rewards(model: PersRM, maps: Tensor, responses: Sequence[CachedResponse]) -> Tensor:
    """The same of linear maps of h_B, [D, H, H]."""
    directions = torch.einsum("doh,nh->ndo", maps, torch.cat([r.h_B for r in responses]).float())
    return torch.einsum("nkh,ndh->nkd", model.embeddings(_ids(responses)), directions)


def constant_rewards(
    model: PersRM, directions: Tensor, responses: Sequence[CachedResponse]
) -> Tensor:
    """The same of one direction [D, H] for all states."""
    return torch.einsum("nkh,dh->nkd", model.embeddings(_ids(responses)), directions)


@torch.no_grad()
def reward_spreads(rewards: RewardFunction, prompts: Iterable[Sequence[CachedResponse]]) -> Tensor:
    """[D] standard deviations of rewards over the base's candidates under the base, in logits."""
    count, whole = 0, torch.zeros(())
    for responses in prompts:
        z_B = torch.cat([r.z_B for r in responses])
        whole = whole + base_mean_square(
            subtract_base_mean(rewards(responses), z_B), z_B
        ).cpu().sum(0)
        count += len(z_B)
    return (whole / max(count, 1)).sqrt().clamp_min(1e-6)


def scale_constants_to_one_logit(
    model: PersRM, constant: Tensor, prompts: Iterable[Sequence[CachedResponse]]
) -> Tensor:
    """One direction [D, H] for all states, on the CPU, scaled to rewards of one logit's spread."""
    rewards = partial(constant_rewards, model, constant.to(model.head_A))
    return constant.cpu() / reward_spreads(rewards, prompts)[:, None]


def _ids(responses: Sequence[CachedResponse]) -> Tensor:
    return torch.cat([r.ids for r in responses]).long()
