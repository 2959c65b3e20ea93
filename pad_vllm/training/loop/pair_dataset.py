"""The prompts of a run as the trainer wants them: examples to train on, pairs to look at.

In: groups and the store. Out: trainer.Data. Preferences are drawn anew for every prompt and step, from a
seed made of run, stage, step and prompt: whichever worker asks gets the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from pad_vllm.training.data.prompt_groups import Group
from pad_vllm.training.data.synthetic_preferences import draw_for
from pad_vllm.training.objective.loss_module import Example, psi
from pad_vllm.training.objective.pair_accuracy import Accuracy, Tested, measure, preferences
from pad_vllm.training.objective.training_store import Store
from pad_vllm.training.settings import Recipe


class Prompts:
    """trainer.Data over groups whose scores are in spreads.

    looked_at: the validation groups that early stopping goes by.
    """

    def __init__(
        self, store: Store, trained: Sequence[Group], looked_at: Sequence[Group], recipe: Recipe
    ) -> None:
        self.store, self.recipe, self.looked_at = (
            store,
            recipe,
            _some(looked_at, recipe.validation_prompts),
        )
        self.seen = [group for group in trained for _ in range(group.repeat)]
        self.lengths = [
            len(group.prompt_ids) + max(map(len, group.response_ids)) for group in self.seen
        ]
        scores = [group.scores[:, -1] for group in self.looked_at]
        self.tested = preferences(store.model.dimensions, scores, mixes=8)

    def example(self, index: int, stage: int, step: int) -> Example:
        group, device = self.seen[index], self.store.device
        w = self._preferences(group, f"{self.recipe.seed} {stage} {step} {index}")
        responses = self.store.responses(group, scored=True)
        return Example(responses, group.scores.to(device), w.to(device))

    def _preferences(self, group: Group, seed_text: str) -> Tensor:
        if group.weights is not None:
            return torch.tensor([group.weights])
        seed = int.from_bytes(hashlib.sha256(seed_text.encode()).digest()[:8], "big") >> 1
        known = ~group.scores[:, -1].isnan().any(0)
        generator = torch.Generator().manual_seed(seed)
        return draw_for(known, self.recipe.preferences, generator)

    def accuracy(self) -> dict[str, float]:
        accuracies = held_out(self.store, self.looked_at, self.tested, self.recipe.least_margin)
        return {name: round(a.pairs, 4) for name, a in accuracies.items() if a.count}


def held_out(
    store: Store, groups: Sequence[Group], tested: Sequence[Tested], least: float
) -> dict[str, Accuracy]:
    """Accuracy of the model in `store` as it is now."""
    sums = [psi(store.model, store.responses(group)).cpu() for group in groups]
    scores = [group.scores[:, -1] for group in groups]
    return measure(lambda number, w: w @ sums[number].T, scores, tested, least)


def _some(groups: Sequence[Group], count: int) -> list[Group]:
    """At most `count` groups at even steps, so that each source keeps its share."""
    step = max(len(groups) / max(count, 1), 1.0)
    return [groups[int(place * step)] for place in range(min(count, len(groups)))]
