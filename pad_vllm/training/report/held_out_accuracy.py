"""What an adapter is worth on held-out pairs, beside a reward that knows nothing and one that is prompted.

In: a PersRM and held-out groups. Out: one row a preference, as the model card shows them:
    trained    w . Psi of the PersRM
    untrained  the reward before any training: 0 for every response, all ties
    prompted   log pi_B(y | the preference in words, prompt) - log pi_B(y | prompt), the base's own
               knowledge, in each of the wordings of training/data/synthetic_preferences.py
Knows nothing of how the adapter was trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pad_vllm.evaluation.text_measures import answer_losses
from pad_vllm.persrm import PersRM
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.preference_text import with_preference
from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.data.synthetic_preferences import WORDINGS, describe_weights
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
"""Responses that the prompted base is evaluated on, each by a full forward pass."""

REWORDED = 48
"""Of these, the responses that are evaluated in all other wordings too."""

CACHED_PROMPTS = 1024
"""Prompts with their responses whose losses are kept: every preference asks for the plain ones again."""

AccuracyRow = dict[str, Any]


def accuracy_rows_with_prompted_base(
    store: TrainingStore,
    tokenizer: Any,
    groups: Sequence[PromptGroup],
    recipe: Recipe,
    progress: ProgressCallback,
) -> list[AccuracyRow]:
    """One row a tested preference; groups have scores in spreads and responses in the store."""
    words = _PromptedBase(store.model, tokenizer)
    figure_rows = []
    tested = _tested(store, groups)
    known = _ranked(store, groups, tested, recipe)
    for number, (preference, row) in enumerate(zip(tested, known, strict=True)):
        progress("preferences in words", number, len(tested))
        prompted = _prompted(words, groups, preference, recipe.least_margin)
        figure_rows.append({**row, **prompted, "count": row["count"]})
    return figure_rows


def accuracy_rows(
    store: TrainingStore, groups: Sequence[PromptGroup], recipe: Recipe
) -> list[AccuracyRow]:
    """The same rows without the prompted base, which is what takes time."""
    return _ranked(store, groups, _tested(store, groups), recipe)


def _ranked(
    store: TrainingStore,
    groups: Sequence[PromptGroup],
    tested: Sequence[TestedPreference],
    recipe: Recipe,
) -> list[AccuracyRow]:
    least = recipe.least_margin
    scores = [group.scores[:, -1] for group in groups]
    trained = stored_pair_accuracy(store, groups, tested, least)
    untrained = measure_pair_accuracy(
        lambda number, w: torch.zeros(len(w), len(scores[number])), scores, tested, least
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


def _tested(store: TrainingStore, groups: Sequence[PromptGroup]) -> list[TestedPreference]:
    return preferences_to_test(store.model.dimensions, [group.scores[:, -1] for group in groups])


def accuracy_entry(model_name: str, accuracy: PairAccuracy) -> AccuracyRow:
    """Under the model's name what is known of it: there is no share of no pairs."""
    known = {key: value for key, value in asdict(accuracy).items() if not math.isnan(value)}
    return {model_name: {key: round(value, 4) for key, value in known.items()}}


def _prompted(
    words: _PromptedBase, groups: Sequence[PromptGroup], preference: TestedPreference, least: float
) -> AccuracyRow:
    """Accuracy of the prompted base, and on fewer prompts in each of the wordings."""
    w = preference.w[:4]  # of the mixes only a few: each needs forward passes of its own
    telling = [group for group in groups if _tells(group, w)]
    some, fewer = (_worth(telling, most // len(w)) for most in (PROMPTED_RESPONSES, REWORDED))
    if not some:
        return {}
    tested = TestedPreference(preference.name, w, 0.0)

    def figure(part: list[PromptGroup], wording: int) -> PairAccuracy:
        scores = [group.scores[:, -1] for group in part]
        return measure_pair_accuracy(
            lambda number, w: words.values(part[number], w, wording), scores, [tested], least
        )[preference.name]

    wordings = [round(figure(fewer, number).pairs, 4) for number in range(len(WORDINGS))]
    return accuracy_entry("prompted", figure(some, 0)) | {"wordings": wordings}


def _worth(groups: Sequence[PromptGroup], most: int) -> list[PromptGroup]:
    """The first groups with at most `most` responses together, at least one group."""
    first: list[PromptGroup] = []
    for group in groups:
        if first and sum(len(g.response_ids) for g in [*first, group]) > most:
            break
        first.append(group)
    return first


def _tells(group: PromptGroup, w: Tensor) -> bool:
    """Whether every dimension that w weighs is known for all responses and differs between some."""
    scores = group.scores[:, -1]
    told = ~scores.isnan().any(0) & (scores.amax(0) > scores.amin(0))
    return bool(told[(w != 0).any(0)].all())


class _PromptedBase:
    """Log-likelihoods of the base where the prompt states the preference. The last losses are kept."""

    def __init__(self, model: PersRM, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._kept = lru_cache(CACHED_PROMPTS)(self._losses)

    def values(self, group: PromptGroup, w: Tensor, wording: int) -> Tensor:
        """log pi_B(y | words, prompt) - log pi_B(y | prompt): w [W, D] -> [W, R]."""
        plain = self.losses(group.prompt_ids, group.response_ids)
        log_ratios = []
        for row in w:
            weights = dict(zip(self.model.dimensions, row.tolist(), strict=True))
            text = describe_weights({k: v for k, v in weights.items() if v}, wording=wording)
            asked = chat_token_ids(
                self.tokenizer, with_preference(group.conversation.messages(), text)
            )
            log_ratios.append(plain - self.losses(asked, group.response_ids))
        return torch.stack(log_ratios)

    def losses(self, prompt_ids: list[int], responses: list[list[int]]) -> Tensor:
        """-log pi_B(y | prompt) of each response."""
        return self._kept(tuple(prompt_ids), tuple(map(tuple, responses)))

    def _losses(self, prompt: tuple[int, ...], responses: tuple[tuple[int, ...], ...]) -> Tensor:
        pairs = [(list(prompt), list(ids)) for ids in responses]
        with self.model.adapter_off():
            losses = answer_losses(self.model.backbone, pairs)
        return torch.tensor([nll for nll, _ in losses])
