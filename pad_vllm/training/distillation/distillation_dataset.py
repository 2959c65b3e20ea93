"""The lessons of a run as the trainer wants them: examples to train on, shares to look at.

In: Parts and the store. Out: trainer.Data. Which first tokens stand beside a prompt is drawn from a seed
made of run, stage, step and prompt, so that whichever worker asks gets the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

from pad_vllm.training.distillation.distillation_examples import (
    DistillationExample,
    DistillationSplit,
)
from pad_vllm.training.distillation.prompted_teacher import DistillationStore
from pad_vllm.training.distillation.reward_regression import (
    RegressionExample,
    explained_shares,
    token_weights,
)
from pad_vllm.training.objective.candidate_rewards import persrm_rewards
from pad_vllm.training.objective.fork_cache import CachedResponse
from pad_vllm.training.settings import Settings


class DistillationDataset:
    """trainer.Data over lessons whose rewards are in the store."""

    def __init__(
        self, store: DistillationStore, parts: DistillationSplit, settings: Settings, firsts: int
    ) -> None:
        self.store, self.parts = store, parts
        self.seed = settings.recipe.seed
        self.firsts = min(firsts, len(parts.firsts))
        self.validation = parts.validation[: settings.recipe.validation_prompts]
        self.lengths = [
            len(one.prompt_ids) + max(map(len, one.response_ids)) for one in parts.train
        ]

    def mean_weight_per_prompt(self) -> float:
        """The weights of a prompt's answers, summed, on average."""
        answers = [ids for lesson in self.parts.train for ids in lesson.response_ids]
        return float(sum(token_weights(len(ids)).sum() for ids in answers)) / len(self.parts.train)

    def example(self, index: int, stage: int, step: int) -> RegressionExample:
        drawn = random.Random(f"{self.seed} {stage} {step} {index}")
        firsts = drawn.sample(self.parts.firsts, self.firsts)
        beside = [response for lesson in firsts for response in self._read(lesson)]
        return RegressionExample(self._read(self.parts.train[index]), beside)

    def accuracy(self) -> dict[str, float]:
        model = self.store.model
        found = explained_shares(partial(persrm_rewards, model), map(self._read, self.validation))
        return {n: round(s, 4) for n, s in zip(model.dimensions, found.tolist(), strict=True)}

    def _read(self, lesson: DistillationExample) -> Sequence[CachedResponse]:
        return self.store.responses(lesson, with_targets=True)
