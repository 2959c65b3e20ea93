"""The examples of a distillation as StageTrainer takes them.

In: a DistillationSplit and the store. Out: StageData. Which first-token examples accompany a prompt is drawn
from a seed made of run, stage, step and prompt, so that every worker gets the same.
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
    """StageData over examples whose teacher rewards are in the store.

    Args:
        store: Has the teacher's rewards of all examples.
        parts: The examples.
        settings: Their seed and validation_prompts are used.
        first_tokens_per_prompt: First-token examples beside each answered prompt, at most.
    """

    def __init__(
        self,
        store: DistillationStore,
        parts: DistillationSplit,
        settings: Settings,
        first_tokens_per_prompt: int,
    ) -> None:
        self.store, self.parts = store, parts
        self.seed = settings.recipe.seed
        self.first_tokens_per_prompt = min(first_tokens_per_prompt, len(parts.first_tokens))
        self.validation = parts.validation[: settings.recipe.validation_prompts]
        self.lengths = [
            len(example.prompt_ids) + max(map(len, example.response_ids)) for example in parts.train
        ]

    def mean_weight_per_prompt(self) -> float:
        """Sum of the token weights of a prompt's answers, averaged over the training prompts."""
        answers = [ids for example in self.parts.train for ids in example.response_ids]
        return float(sum(token_weights(len(ids)).sum() for ids in answers)) / len(self.parts.train)

    def example(self, index: int, stage: int, step: int) -> RegressionExample:
        """Training prompt `index` and the first-token examples drawn for this step.

        Args:
            index: Of the training prompts.
            stage: Number of the stage.
            step: Number of the step in the stage.
        """
        rng = random.Random(f"{self.seed} {stage} {step} {index}")
        drawn = rng.sample(self.parts.first_tokens, self.first_tokens_per_prompt)
        first_tokens = [response for example in drawn for response in self._read(example)]
        return RegressionExample(self._read(self.parts.train[index]), first_tokens)

    def accuracy(self) -> dict[str, float]:
        """For each dimension the share of the teacher's rewards explained on the validation prompts."""
        model = self.store.model
        responses = map(self._read, self.validation)
        shares = explained_shares(partial(persrm_rewards, model), responses).tolist()
        return {name: round(s, 4) for name, s in zip(model.dimensions, shares, strict=True)}

    def _read(self, example: DistillationExample) -> Sequence[CachedResponse]:
        return self.store.responses(example, with_targets=True)
