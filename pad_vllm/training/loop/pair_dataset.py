"""The prompts of a run as the trainer wants them: examples to train on, pairs to look at.

In: groups and the store. Out: trainer.Data. Preferences are drawn anew for every prompt and step, from a
seed made of run, stage, step and prompt: whichever worker asks gets the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.data.synthetic_preferences import draw_for_known
from pad_vllm.training.objective.loss_module import PairExample, cached_feature_sums
from pad_vllm.training.objective.pair_accuracy import (
    PairAccuracy,
    TestedPreference,
    measure_pair_accuracy,
    preferences_to_test,
)
from pad_vllm.training.objective.training_store import TrainingStore
from pad_vllm.training.settings import Recipe


class PairDataset:
    """trainer.Data over groups whose scores are in spreads.

    looked_at: the validation groups that early stopping goes by.
    """

    def __init__(
        self,
        store: TrainingStore,
        training_groups: Sequence[PromptGroup],
        validation_groups: Sequence[PromptGroup],
        recipe: Recipe,
    ) -> None:
        self.store, self.recipe, self.validation_groups = (
            store,
            recipe,
            _some(validation_groups, recipe.validation_prompts),
        )
        self.epoch_groups = [
            group for group in training_groups for _ in range(group.repeats_per_epoch)
        ]
        self.lengths = [
            len(group.prompt_ids) + max(map(len, group.response_ids)) for group in self.epoch_groups
        ]
        scores = [group.scores[:, -1] for group in self.validation_groups]
        self.preferences_to_test = preferences_to_test(store.model.dimensions, scores, mixes=8)

    def example(self, index: int, stage: int, step: int) -> PairExample:
        group, device = self.epoch_groups[index], self.store.device
        w = self._preferences(group, f"{self.recipe.seed} {stage} {step} {index}")
        responses = self.store.responses(group, with_targets=True)
        return PairExample(responses, group.scores.to(device), w.to(device))

    def _preferences(self, group: PromptGroup, seed_text: str) -> Tensor:
        if group.stated_weights is not None:
            return torch.tensor([group.stated_weights])
        seed = int.from_bytes(hashlib.sha256(seed_text.encode()).digest()[:8], "big") >> 1
        known = ~group.scores[:, -1].isnan().any(0)
        generator = torch.Generator().manual_seed(seed)
        return draw_for_known(known, self.recipe.preferences, generator)

    def accuracy(self) -> dict[str, float]:
        accuracies = stored_pair_accuracy(
            self.store, self.validation_groups, self.preferences_to_test, self.recipe.least_margin
        )
        return {name: round(a.pairs, 4) for name, a in accuracies.items() if a.count}


def stored_pair_accuracy(
    store: TrainingStore,
    groups: Sequence[PromptGroup],
    tested: Sequence[TestedPreference],
    clear_margin: float,
) -> dict[str, PairAccuracy]:
    """Accuracy of the model in `store` as it is now."""
    sums = [cached_feature_sums(store.model, store.responses(group)).cpu() for group in groups]
    scores = [group.scores[:, -1] for group in groups]
    return measure_pair_accuracy(lambda number, w: w @ sums[number].T, scores, tested, clear_margin)


def _some(groups: Sequence[PromptGroup], count: int) -> list[PromptGroup]:
    """At most `count` groups at even steps, so that each source keeps its share."""
    step = max(len(groups) / max(count, 1), 1.0)
    return [groups[int(place * step)] for place in range(min(count, len(groups)))]
