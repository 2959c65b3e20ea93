"""Simulated users: which dimensions they like, and how much they like an answer.

In: classifiers of meaning, embedded answers. Out: a score of each answer by a user's taste. No reward was
trained on these classifiers' scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pad_vllm.evaluation.instruction_classifier import InstructionClassifier
from pad_vllm.evaluation.sentence_embeddings import embed
from pad_vllm.steering.guided_answers import DrawnAnswer


@dataclass(frozen=True)
class SimulatedUser:
    """A user who never states a preference."""

    name: str
    taste: dict[str, float]
    """Dimension -> how much of it the user likes."""

    usable_dimensions: tuple[str, ...]
    """Dimensions that may guide answers for the user."""


@dataclass(frozen=True)
class TasteScores:
    """Standardised classifiers of meaning, added up by a user's taste."""

    classifiers: Mapping[str, InstructionClassifier]
    scale: Mapping[str, tuple[float, float]]
    """Dimension -> mean and standard deviation of its classifier's scores."""

    @classmethod
    def standardised(
        cls, classifiers: Mapping[str, InstructionClassifier], embedded: np.ndarray
    ) -> TasteScores:
        """embedded: [N, E] answers whose scores get zero mean and a deviation of one."""
        scale = {}
        for name, classifier in classifiers.items():
            values = np.array(classifier(embedded))
            scale[name] = float(values.mean()), float(values.std()) or 1.0
        return cls(classifiers, scale)

    def __call__(self, user: SimulatedUser, embedded: np.ndarray) -> list[float]:
        """How much the user likes each of the embedded answers [N, E]."""
        total = np.zeros(len(embedded))
        for name, weight in user.taste.items():
            mean, deviation = self.scale[name]
            total += weight * (np.array(self.classifiers[name](embedded)) - mean) / deviation
        return total.tolist()


def embed_answers(answers: Sequence[DrawnAnswer]) -> np.ndarray:
    """[N, E] sentence embeddings."""
    return embed([answer.text for answer in answers])
