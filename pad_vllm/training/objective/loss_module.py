"""The loss of a batch of prompts as a module: what the optimiser, and DDP around it, call.

In: examples, each the cached responses of one prompt, their scores and the preferences drawn for it. Out:
one number. Every prompt counts the same, however many pairs it has, so that a batch may be split over
accumulation steps and workers without changing its gradient. Training runs the model in this module alone.
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
    """One prompt of a batch, on the model's device."""

    responses: Sequence[CachedResponse]
    """R responses, with branches."""

    scores: Tensor
    """[R, C + 1, D] of the C prefixes and of the whole response, in spreads; NaN: unknown."""

    w: Tensor
    """[W, D] preferences."""


def trunk_hidden(model: PersRM, responses: Sequence[CachedResponse]) -> list[Tensor]:
    """h_T [n, H] of each response: the stored one, or the top layers run on the fork activations.

    Of all responses the fork activations are stored, or of none.
    """
    if model.heads_only:
        return [r.h_B for r in responses]
    if all(r.h_T is not None for r in responses):
        return [r.h_T for r in responses if r.h_T is not None]
    hidden = model.trunk_states(_forked_states(model, responses))
    return [r.response_rows(hidden[row]) for row, r in enumerate(responses)]


def _forked_states(model: PersRM, responses: Sequence[CachedResponse]) -> Tensor:
    """[R, most S - 1, H] the stored activations at the fork, or those that the layers below it compute."""
    ids = [r.token_ids for r in responses if r.token_ids is not None]
    if not ids:
        return pad_sequence([r.forked for r in responses], batch_first=True)
    return model.states_below_fork(pad_sequence(ids, batch_first=True))


@torch.no_grad()
def cached_feature_sums(model: PersRM, responses: Sequence[CachedResponse]) -> Tensor:
    """Feature sums Psi [R, D]: w . Psi is the reward of a response under any w."""
    sums = []
    for response, h_T in zip(responses, trunk_hidden(model, responses), strict=True):
        taken = response.ids.gather(-1, response.chosen.long().unsqueeze(-1))
        sums.append(model.features(response.h_B, h_T, taken.long())[:, 0].sum(0))
    return torch.stack(sums)


class PreferenceObjective(nn.Module):
    """The training objective (preference_loss.py) of a PersRM over micro-batches of prompts."""

    def __init__(self, model: PersRM, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, batch: Sequence[PairExample], prompts_in_step: int) -> Tensor:
        """The sum of the prompts' losses, divided by `prompts_in_step`.

        batch: this micro-batch; may be empty. prompts_in_step: prompts of the whole optimiser step, of all
        micro-batches and workers.
        """
        if not batch:
            return zero_loss(self)
        responses = [r for example in batch for r in example.responses]
        responses_of_prompt = [len(example.responses) for example in batch]
        lengths = torch.tensor([len(r.chosen) for r in responses])
        phi = self._features(responses)
        z_B = torch.cat([r.z_B for r in responses]).float()
        taken = torch.cat([r.chosen for r in responses]).long()
        w = _preferences_of_tokens(batch, lengths)
        reward = _prefix_sums(preference_loss.taken_rewards(phi, w, taken), lengths)
        policy = _prefix_sums(preference_loss.log_ratios(phi, z_B, w, taken), lengths)
        total = phi.new_zeros(())
        for example, psi_w, ratios in zip(
            batch,
            reward.split(responses_of_prompt, 2),
            policy.split(responses_of_prompt, 2),
            strict=True,
        ):
            total = total + self._pair_loss(example, psi_w, ratios)
        total = total + self._branch_loss(batch, phi.split(lengths.tolist()))
        return total / prompts_in_step

    def _features(self, responses: Sequence[CachedResponse]) -> Tensor:
        """phi [n, K, D] of all tokens of the responses."""
        hidden = torch.cat(trunk_hidden(self.model, responses))
        ids = torch.cat([r.ids for r in responses]).long()
        return self.model.features(torch.cat([r.h_B for r in responses]), hidden, ids)

    def _pair_loss(self, example: PairExample, psi_w: Tensor, ratios: Tensor) -> Tensor:
        """The loss over pairs of responses of one prompt. psi_w, ratios [C + 1, most W of the batch, R]."""
        recipe, count = self.recipe, len(example.w)
        margins = preference_loss.pair_margins(example.scores.transpose(0, 1), example.w)
        reward, policy = (
            preference_loss.bradley_terry(values[:, :count], margins, recipe.b, recipe.sharpness)
            for values in (psi_w, ratios)
        )
        return recipe.reward_weight * reward + recipe.policy_weight * policy

    def _branch_loss(self, batch: Sequence[PairExample], phi: Sequence[Tensor]) -> Tensor:
        """The loss over pairs of next tokens. phi [n, K, D] of each response of the batch."""
        recipe, row, total = self.recipe, 0, phi[0].new_zeros(())
        for example in batch:
            features, scores = [], []
            for response in example.responses:
                if response.branch_at is not None and response.branch_scores is not None:
                    features.append(phi[row][response.branch_at])
                    scores.append(response.branch_scores)
                row += 1
            if features:
                total = total + preference_loss.branch_loss(
                    torch.cat(features),
                    example.w,
                    torch.cat(scores),
                    recipe.branch_b,
                    recipe.sharpness,
                )
        return recipe.branch_weight * total


def _preferences_of_tokens(batch: Sequence[PairExample], lengths: Tensor) -> Tensor:
    """w [n, most W of the batch, D] of every token, at length 1; rows of zeros for prompts that have fewer.

    lengths: tokens of each response of the batch.
    """
    most = max(len(example.w) for example in batch)
    units = [preference_loss.unit_preferences(example.w) for example in batch]
    w_of_responses = torch.cat(
        [
            torch.nn.functional.pad(w, (0, 0, 0, most - len(w))).expand(
                len(example.responses), -1, -1
            )
            for example, w in zip(batch, units, strict=True)
        ]
    )
    device, total = w_of_responses.device, int(lengths.sum())
    return w_of_responses.repeat_interleave(lengths.to(device), 0, output_size=total)


def _prefix_sums(values: Tensor, lengths: Tensor) -> Tensor:
    """Sums of values [n, W] over the prefixes (PREFIX_LENGTHS) and the whole of each response.

    lengths [R]: tokens of each response, n together. Returns [C + 1, W, R].
    """
    device, pieces = values.device, len(PREFIX_LENGTHS) + 1
    response = torch.arange(len(lengths)).repeat_interleave(lengths)
    position = torch.cat([torch.arange(int(n)) for n in lengths])
    piece = torch.bucketize(position, torch.tensor(PREFIX_LENGTHS), right=True)
    index = (piece * len(lengths) + response).to(device)
    sums = values.new_zeros(pieces * len(lengths), values.shape[1]).index_add(0, index, values)
    return sums.view(pieces, len(lengths), -1).cumsum(0).transpose(1, 2)


def zero_loss(objective: nn.Module) -> Tensor:
    """A loss of 0 with gradients of 0, for a worker without prompts.

    With more workers than prompts, DDP still waits for this worker's gradients.
    """
    trained = [p for p in objective.parameters() if p.requires_grad]
    return torch.stack([p.sum() * 0.0 for p in trained]).sum()
