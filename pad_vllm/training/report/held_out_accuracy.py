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

from pad_vllm.evaluation.text_measures import token_losses
from pad_vllm.persrm import PersRM
from pad_vllm.text.chat_template import chat_ids
from pad_vllm.text.preference_text import with_preference
from pad_vllm.training.data.prompt_groups import Group
from pad_vllm.training.data.synthetic_preferences import WORDINGS, describe
from pad_vllm.training.loop.pair_dataset import held_out
from pad_vllm.training.objective.pair_accuracy import Accuracy, Tested, measure, preferences
from pad_vllm.training.objective.training_store import Progress, Store
from pad_vllm.training.settings import Recipe

PROMPTED = 160
"""Responses that the prompted base is evaluated on, each by a full forward pass."""

REWORDED = 48
"""Of these, the responses that are evaluated in all other wordings too."""

KEPT = 1024
"""Prompts with their responses whose losses are kept: every preference asks for the plain ones again."""

FigureRow = dict[str, Any]


def rows(
    store: Store, tokenizer: Any, groups: Sequence[Group], recipe: Recipe, progress: Progress
) -> list[FigureRow]:
    """One row a tested preference; groups have scores in spreads and responses in the store."""
    words = _Words(store.model, tokenizer)
    figure_rows = []
    tested = _tested(store, groups)
    known = _ranked(store, groups, tested, recipe)
    for number, (preference, row) in enumerate(zip(tested, known, strict=True)):
        progress("preferences in words", number, len(tested))
        prompted = _prompted(words, groups, preference, recipe.least_margin)
        figure_rows.append({**row, **prompted, "count": row["count"]})
    return figure_rows


def ranked(store: Store, groups: Sequence[Group], recipe: Recipe) -> list[FigureRow]:
    """The same rows without the prompted base, which is what takes time."""
    return _ranked(store, groups, _tested(store, groups), recipe)


def _ranked(
    store: Store, groups: Sequence[Group], tested: Sequence[Tested], recipe: Recipe
) -> list[FigureRow]:
    least = recipe.least_margin
    scores = [group.scores[:, -1] for group in groups]
    trained = held_out(store, groups, tested, least)
    untrained = measure(
        lambda number, w: torch.zeros(len(w), len(scores[number])), scores, tested, least
    )
    return [
        {
            "preference": preference.name,
            "distance": round(preference.distance, 1),
            **figures("trained", trained[preference.name]),
            **figures("untrained", untrained[preference.name]),
            "count": trained[preference.name].count,
        }
        for preference in tested
    ]


def _tested(store: Store, groups: Sequence[Group]) -> list[Tested]:
    return preferences(store.model.dimensions, [group.scores[:, -1] for group in groups])


def figures(name: str, accuracy: Accuracy) -> FigureRow:
    """Under the model's name what is known of it: there is no share of no pairs."""
    known = {key: value for key, value in asdict(accuracy).items() if not math.isnan(value)}
    return {name: {key: round(value, 4) for key, value in known.items()}}


def _prompted(
    words: _Words, groups: Sequence[Group], preference: Tested, least: float
) -> FigureRow:
    """Accuracy of the prompted base, and on fewer prompts in each of the wordings."""
    w = preference.w[:4]  # of the mixes only a few: each needs forward passes of its own
    telling = [group for group in groups if _tells(group, w)]
    some, fewer = (_worth(telling, most // len(w)) for most in (PROMPTED, REWORDED))
    if not some:
        return {}
    tested = Tested(preference.name, w, 0.0)

    def figure(part: list[Group], wording: int) -> Accuracy:
        scores = [group.scores[:, -1] for group in part]
        return measure(
            lambda number, w: words.values(part[number], w, wording), scores, [tested], least
        )[preference.name]

    wordings = [round(figure(fewer, number).pairs, 4) for number in range(len(WORDINGS))]
    return figures("prompted", figure(some, 0)) | {"wordings": wordings}


def _worth(groups: Sequence[Group], most: int) -> list[Group]:
    """The first groups with at most `most` responses together, at least one group."""
    first: list[Group] = []
    for group in groups:
        if first and sum(len(g.response_ids) for g in [*first, group]) > most:
            break
        first.append(group)
    return first


def _tells(group: Group, w: Tensor) -> bool:
    """Whether every dimension that w weighs is known for all responses and differs between some."""
    scores = group.scores[:, -1]
    told = ~scores.isnan().any(0) & (scores.amax(0) > scores.amin(0))
    return bool(told[(w != 0).any(0)].all())


class _Words:
    """Log-likelihoods of the base where the prompt states the preference. The last losses are kept."""

    def __init__(self, model: PersRM, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._kept = lru_cache(KEPT)(self._losses)

    def values(self, group: Group, w: Tensor, wording: int) -> Tensor:
        """log pi_B(y | words, prompt) - log pi_B(y | prompt): w [W, D] -> [W, R]."""
        plain = self.losses(group.prompt_ids, group.response_ids)
        log_ratios = []
        for row in w:
            weights = dict(zip(self.model.dimensions, row.tolist(), strict=True))
            text = describe({k: v for k, v in weights.items() if v}, wording=wording)
            asked = chat_ids(self.tokenizer, with_preference(list(group.prompt), text))
            log_ratios.append(plain - self.losses(asked, group.response_ids))
        return torch.stack(log_ratios)

    def losses(self, prompt_ids: list[int], responses: list[list[int]]) -> Tensor:
        """-log pi_B(y | prompt) of each response."""
        return self._kept(tuple(prompt_ids), tuple(map(tuple, responses)))

    def _losses(self, prompt: tuple[int, ...], responses: tuple[tuple[int, ...], ...]) -> Tensor:
        pairs = [(list(prompt), list(ids)) for ids in responses]
        with self.model.base_alone():
            losses = token_losses(self.model.backbone, pairs)
        return torch.tensor([nll for nll, _ in losses])
