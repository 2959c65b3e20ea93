"""The loss of a batch of prompts as a module: what the optimiser, and DDP around it, call.

In: examples, each the cached responses of one prompt, their scores and the preferences drawn for it. Out:
one number. Every prompt counts the same, however many pairs it has, so that a batch may be split over
accumulation steps and workers without changing its gradient. Here and in `psi` is all that training
asks of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pad_vllm.persrm import PersRM
from pad_vllm.training.data.prompt_groups import PREFIX_LENGTHS
from pad_vllm.training.objective import preference_loss
from pad_vllm.training.objective.fork_cache import CachedResponse
from pad_vllm.training.settings import Recipe


@dataclass(frozen=True)
class PairExample:
    """One prompt: responses [R], scores [R, C + 1, D] in spreads, preferences w [W, D]."""

    responses: Sequence[CachedResponse]
    scores: Tensor
    w: Tensor


def trunk_hidden(model: PersRM, responses: Sequence[CachedResponse]) -> list[Tensor]:
    """h_T [n, H] of each response: stored, or the top layers run on the fork activations."""
    if model.heads_only:
        return [r.h_B for r in responses]
    if all(r.h_T is not None for r in responses):
        return [r.h_T for r in responses if r.h_T is not None]
    padded = pad_sequence([r.forked for r in responses], batch_first=True)
    hidden = model.trunk_states(padded)
    return [r.response_rows(hidden[row]) for row, r in enumerate(responses)]


@torch.no_grad()
def cached_feature_sums(model: PersRM, responses: Sequence[CachedResponse]) -> Tensor:
    """Feature sums Psi [R, D]: w . Psi is the reward of a response under any w."""
    taken = [r.ids.gather(-1, r.chosen.long().unsqueeze(-1)) for r in responses]
    parts = zip(responses, trunk_hidden(model, responses), taken, strict=True)
    return torch.stack([model.features(r.h_B, h, ids.long())[:, 0].sum(0) for r, h, ids in parts])


class PreferenceObjective(nn.Module):
    """Summed loss of a micro-batch over `whole` prompts of the optimiser's step."""

    def __init__(self, model: PersRM, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, batch: Sequence[PairExample], prompts_in_step: int) -> Tensor:
        if not batch:
            return zero_loss(self)
        responses = [r for example in batch for r in example.responses]
        sizes = [len(example.responses) for example in batch]
        lengths = torch.tensor([len(r.chosen) for r in responses])
        phi = self._features(responses)
        z_B, chosen = torch.cat([r.z_B for r in responses]), _chosen(responses)
        most = max(len(e.w) for e in batch)
        each_w = torch.cat([_filled(e.w, most).expand(len(e.responses), -1, -1) for e in batch])
        each_w = each_w.repeat_interleave(lengths.to(each_w.device), 0)
        reward = _beginnings(preference_loss.taken_rewards(phi, each_w, chosen), lengths)
        policy = _beginnings(preference_loss.log_ratios(phi, z_B.float(), each_w, chosen), lengths)
        total = phi.new_zeros(())
        parts = zip(batch, reward.split(sizes, 2), policy.split(sizes, 2), strict=True)
        for example, psi_w, ratios in parts:
            total = total + self._pairs(example, psi_w, ratios)
        return (total + self._branches(phi.split(lengths.tolist()), batch)) / prompts_in_step

    def _features(self, responses: Sequence[CachedResponse]) -> Tensor:
        hidden = torch.cat(trunk_hidden(self.model, responses))
        ids = torch.cat([r.ids for r in responses]).long()
        return self.model.features(torch.cat([r.h_B for r in responses]), hidden, ids)

    def _pairs(self, example: PairExample, psi_w: Tensor, ratios: Tensor) -> Tensor:
        """psi_w, ratios [C + 1, most W of the batch, R] of one prompt -> its loss."""
        recipe, count = self.recipe, len(example.w)
        margins = preference_loss.pair_margins(example.scores.transpose(0, 1), example.w)
        reward, policy = (
            preference_loss.bradley_terry(values[:, :count], margins, recipe.b, recipe.sharpness)
            for values in (psi_w, ratios)
        )
        return recipe.reward_weight * reward + recipe.policy_weight * policy

    def _branches(self, phi: Sequence[Tensor], batch: Sequence[PairExample]) -> Tensor:
        """phi [n, K, D] of each response of the batch."""
        recipe, row, total = self.recipe, 0, phi[0].new_zeros(())
        for example in batch:
            features, scores = [], []
            for response in example.responses:
                if response.branch_at is not None and response.branch_scores is not None:
                    features.append(phi[row][response.branch_at])
                    scores.append(response.branch_scores)
                row += 1
            if features:
                pairs = torch.cat(features), example.w, torch.cat(scores)
                total = total + preference_loss.branch_loss(
                    *pairs, recipe.branch_b, recipe.sharpness
                )
        return recipe.branch_weight * total


def _filled(w: Tensor, count: int) -> Tensor:
    """w [W, D] with rows of zeros below it -> [count, D]."""
    return torch.nn.functional.pad(w, (0, 0, 0, count - len(w)))


def _chosen(responses: Sequence[CachedResponse]) -> Tensor:
    return torch.cat([r.chosen for r in responses]).long()


def _beginnings(values: Tensor, lengths: Tensor) -> Tensor:
    """Sums of values [n, W] over the beginnings (CUTS) and the whole of each of R responses
    of `lengths` [R] tokens -> [C + 1, W, R].
    """
    device, pieces = values.device, len(PREFIX_LENGTHS) + 1
    owner = torch.arange(len(lengths)).repeat_interleave(lengths)
    place = torch.cat([torch.arange(int(n)) for n in lengths])
    segment = torch.bucketize(place, torch.tensor(PREFIX_LENGTHS), right=True)
    index = (segment * len(lengths) + owner).to(device)
    sums = values.new_zeros(pieces * len(lengths), values.shape[1]).index_add(0, index, values)
    return sums.view(pieces, len(lengths), -1).cumsum(0).transpose(1, 2)


def zero_loss(objective: nn.Module) -> Tensor:
    """The loss of a worker without prompts, 0: more workers than prompts, and DDP still waits for this one's
    gradients.
    """
    trained = [p for p in objective.parameters() if p.requires_grad]
    return torch.stack([p.sum() * 0.0 for p in trained]).sum()
