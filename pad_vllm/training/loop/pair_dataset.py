"""The prompts of a run that learns from pairs: examples to train on, validation accuracy.

In: groups and the store. Out: a trainer.StageData. Preferences are drawn anew for every prompt and step, from
a seed made of run, stage, step and prompt, so every worker that asks gets the same.
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
    """A trainer.StageData over groups whose scores are in spreads."""

    def __init__(
        self,
        store: TrainingStore,
        training_groups: Sequence[PromptGroup],
        validation_groups: Sequence[PromptGroup],
        recipe: Recipe,
    ) -> None:
        """Choose the validation groups that are evaluated.

        Args:
            store: has the responses of all groups.
            training_groups: with branches.
            validation_groups: early stopping looks at `recipe.validation_prompts` of them.
            recipe: seeds and counts.
        """
        self.store, self.recipe = store, recipe
        self.validation_groups = _evenly_spaced(validation_groups, recipe.validation_prompts)
        self.epoch_groups = [g for g in training_groups for _ in range(g.repeats_per_epoch)]
        self.lengths = [
            len(group.prompt_ids) + max(map(len, group.response_ids)) for group in self.epoch_groups
        ]
        scores = [group.scores[:, -1] for group in self.validation_groups]
        self.tested_preferences = preferences_to_test(store.model.dimensions, scores, mixes=8)

    def example(self, index: int, stage: int, step: int) -> PairExample:
        """The prompt's responses and scores, and the preferences drawn for this step.

        Args:
            index: into `lengths`.
            stage: number of the stage.
            step: number of the step.

        Returns:
            The example, on the model's device.
        """
        group, device = self.epoch_groups[index], self.store.device
        w = self._preferences(group, f"{self.recipe.seed} {stage} {step} {index}")
        responses = self.store.responses(group, with_targets=True)
        return PairExample(responses, group.scores.to(device), w.to(device))

    def _preferences(self, group: PromptGroup, seed_text: str) -> Tensor:
        """w [W, D] on the CPU: the one that the prompt states, or drawn ones."""
        if group.stated_weights is not None:
            return torch.tensor([group.stated_weights])
        seed = int.from_bytes(hashlib.sha256(seed_text.encode()).digest()[:8], "big") >> 1
        known = ~group.scores[:, -1].isnan().any(0)
        generator = torch.Generator().manual_seed(seed)
        return draw_for_known(known, self.recipe.preferences, generator)

    def accuracy(self) -> dict[str, float]:
        """Name of a tested preference -> share of the validation pairs that the model ranks rightly."""
        accuracies = stored_pair_accuracy(
            self.store, self.validation_groups, self.tested_preferences, self.recipe.least_margin
        )
        return {name: round(a.pairs, 4) for name, a in accuracies.items() if a.count}


def stored_pair_accuracy(
    store: TrainingStore,
    groups: Sequence[PromptGroup],
    tested: Sequence[TestedPreference],
    clear_margin: float,
) -> dict[str, PairAccuracy]:
    """Pair accuracy of the store's model as it is now.

    Args:
        store: has the responses of the groups.
        groups: scores in spreads.
        tested: preferences.
        clear_margin: least margin of a clear pair, in spreads.

    Returns:
        Name of a preference -> its accuracy.
    """
    sums = [cached_feature_sums(store.model, store.responses(group)).cpu() for group in groups]
    scores = [group.scores[:, -1] for group in groups]
    return measure_pair_accuracy(lambda number, w: w @ sums[number].T, scores, tested, clear_margin)


def _evenly_spaced(groups: Sequence[PromptGroup], count: int) -> list[PromptGroup]:
    """At most `count` groups at even steps, so that each source keeps its share."""
    step = max(len(groups) / max(count, 1), 1.0)
    return [groups[int(number * step)] for number in range(min(count, len(groups)))]
