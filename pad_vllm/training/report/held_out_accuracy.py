"""Accuracy on held-out pairs: of a trained PersRM, of an untrained one, and of the base with a prompt.

In: a PersRM and held-out groups. Out: one row for each preference, as the model card shows them. The columns:
    trained    w . Psi of the PersRM
    untrained  the reward before any training: 0 for every response, so all pairs are ties
    prompted   log pi_B(y | the preference in words, prompt) - log pi_B(y | prompt): what the base
               knows itself, on the first prompts
    trained_there  the PersRM on the prompts that the prompted base read, and under the same preferences
Knows nothing of how the adapter was trained.
Shapes: R responses of a group, W weight vectors, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pad_vllm.evaluation.win_rates_and_fluency import answer_losses
from pad_vllm.persrm import PersRM
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.preference_text import with_preference
from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.data.synthetic_preferences import describe_weights
from pad_vllm.training.loop.pair_dataset import stored_pair_accuracy
from pad_vllm.training.objective.pair_accuracy import (
    PairAccuracy,
    TestedPreference,
    measure_pair_accuracy,
    preferences_to_test,
)
from pad_vllm.training.objective.training_store import ProgressCallback, TrainingStore
from pad_vllm.training.settings import Recipe

PROMPTED_RESPONSES = 160
"""Responses that the prompted base is evaluated on for each preference; each takes a full forward pass."""

CACHED_PROMPTS = 1024
"""Prompts with responses whose losses are kept: every preference needs those of the plain prompts."""

AccuracyRow = dict[str, Any]
"""A row of `training.held_out` in pad_config.json: "preference", "distance" (degrees to the nearest
dimension), "count" of pairs, and for each model {"pairs", "clear", "count"}.
"""


def accuracy_rows_with_prompted_base(
    store: TrainingStore,
    tokenizer: Any,
    groups: Sequence[PromptGroup],
    recipe: Recipe,
    progress: ProgressCallback,
) -> list[AccuracyRow]:
    """`accuracy_rows` with the prompted base, which takes minutes.

    Args:
        store: Has the model and the responses of the groups.
        tokenizer: The base's, with the chat template that the groups were made with.
        groups: Held-out groups, scores in spreads.
        recipe: Its least_margin is used.
        progress: Called before each preference.

    Returns:
        One row for each dimension, then one for the mixes; none for mixes if no prompt has scores for two
        dimensions.
    """
    base = _PromptedBase(store.model, tokenizer)
    tested = _tested_preferences(store, groups)
    plain_rows = _rows(store, groups, tested, recipe.least_margin)
    rows = []
    for number, (preference, row) in enumerate(zip(tested, plain_rows, strict=True)):
        progress("preferences in words", number, len(tested))
        prompted = _prompted_entry(base, store, groups, preference, recipe.least_margin)
        rows.append({**row, **prompted, "count": row["count"]})
    return rows


def accuracy_rows(
    store: TrainingStore, groups: Sequence[PromptGroup], recipe: Recipe
) -> list[AccuracyRow]:
    """One row for each dimension, then one for mixes of them that training has not drawn.

    There is no row for mixes if no prompt has scores for two dimensions.

    Args:
        store: Has the model and the responses of the groups.
        groups: Held-out groups, scores in spreads.
        recipe: Its least_margin is used.
    """
    return _rows(store, groups, _tested_preferences(store, groups), recipe.least_margin)


def accuracy_entry(model_name: str, accuracy: PairAccuracy) -> AccuracyRow:
    """The part of a row for one model. Shares of no pairs (NaN) are left out."""
    numbers = {key: value for key, value in asdict(accuracy).items() if not math.isnan(value)}
    return {model_name: {key: round(value, 4) for key, value in numbers.items()}}


def _tested_preferences(
    store: TrainingStore, groups: Sequence[PromptGroup]
) -> list[TestedPreference]:
    return preferences_to_test(store.model.dimensions, [group.scores[:, -1] for group in groups])


def _rows(
    store: TrainingStore,
    groups: Sequence[PromptGroup],
    tested: Sequence[TestedPreference],
    clear_margin: float,
) -> list[AccuracyRow]:
    scores = [group.scores[:, -1] for group in groups]
    trained = stored_pair_accuracy(store, groups, tested, clear_margin)
    untrained = measure_pair_accuracy(
        lambda number, w: torch.zeros(len(w), len(scores[number])), scores, tested, clear_margin
    )
    return [
        {
            "preference": preference.name,
            "distance": round(preference.angle, 1),
            **accuracy_entry("trained", trained[preference.name]),
            **accuracy_entry("untrained", untrained[preference.name]),
            "count": trained[preference.name].count,
        }
        for preference in tested
    ]


def _prompted_entry(
    base: _PromptedBase,
    store: TrainingStore,
    groups: Sequence[PromptGroup],
    preference: TestedPreference,
    clear_margin: float,
) -> AccuracyRow:
    """The part of a row for the prompted base, and for the PersRM on the same prompts.

    {} if no group tells the preference's dimensions apart.
    """
    w = preference.w[:4]  # only a few of the mixes: each needs forward passes of its own
    informative = [group for group in groups if _is_informative(group, w)]
    few_groups = _first_groups(informative, PROMPTED_RESPONSES // len(w))
    if not few_groups:
        return {}
    tested = [TestedPreference(preference.name, w, 0.0)]
    prompted = measure_pair_accuracy(
        lambda number, w: base.log_ratios(few_groups[number], w),
        [group.scores[:, -1] for group in few_groups],
        tested,
        clear_margin,
    )
    trained = stored_pair_accuracy(store, few_groups, tested, clear_margin)
    return {
        **accuracy_entry("prompted", prompted[preference.name]),
        **accuracy_entry("trained_there", trained[preference.name]),
    }


def _first_groups(groups: Sequence[PromptGroup], max_responses: int) -> list[PromptGroup]:
    """The first groups with at most that many responses together, at least one group."""
    first: list[PromptGroup] = []
    for group in groups:
        if first and sum(len(g.response_ids) for g in [*first, group]) > max_responses:
            break
        first.append(group)
    return first


def _is_informative(group: PromptGroup, w: Tensor) -> bool:
    """Whether all responses have scores of every dimension in w [W, D], and some of them differ."""
    scores = group.scores[:, -1]
    informative = ~scores.isnan().any(0) & (scores.amax(0) > scores.amin(0))
    return bool(informative[(w != 0).any(0)].all())


class _PromptedBase:
    """The base with a preference in its prompt. Caches its last losses."""

    def __init__(self, model: PersRM, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._cached_losses = lru_cache(CACHED_PROMPTS)(self._compute_losses)

    def log_ratios(self, group: PromptGroup, w: Tensor) -> Tensor:
        """log pi_B(y | words, prompt) - log pi_B(y | prompt) of a group's responses: w [W, D] -> [W, R]."""
        plain = self.losses(group.prompt_ids, group.response_ids)
        log_ratios = []
        for row in w:
            weights = dict(zip(self.model.dimensions, row.tolist(), strict=True))
            text = describe_weights({name: value for name, value in weights.items() if value})
            prompted = with_preference(group.conversation.messages(), text)
            prompt_ids = chat_token_ids(self.tokenizer, prompted)
            log_ratios.append(plain - self.losses(prompt_ids, group.response_ids))
        return torch.stack(log_ratios)

    def losses(self, prompt_ids: list[int], responses: list[list[int]]) -> Tensor:
        """[R] -log pi_B(y | prompt) of each response, in nats."""
        return self._cached_losses(tuple(prompt_ids), tuple(map(tuple, responses)))

    def _compute_losses(
        self, prompt: tuple[int, ...], responses: tuple[tuple[int, ...], ...]
    ) -> Tensor:
        pairs = [(list(prompt), list(ids)) for ids in responses]
        with self.model.adapter_off():
            losses = answer_losses(self.model.backbone, pairs)
        return torch.tensor([loss.nats for loss in losses])
