"""A judge of meaning: a classifier that tells answers to an instruction from plain answers.

In: sentence embeddings of answers drawn with an instruction in the prompt, and of plain answers to the same
prompts. These prompts are not those whose answers are judged. Out: a logistic regression, its accuracy on
prompts that it was not fitted on, and scores. This module knows nothing of rewards: no PersRM is ever trained
on the classifier or on its texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class InstructionClassifier:
    """A logistic regression on sentence embeddings: instructed answers against plain ones."""

    regression: Any  # scikit-learn's LogisticRegression
    accuracy: float  # share of held-out prompts whose instructed answer has a higher score than the plain one

    def __call__(self, embeddings: np.ndarray) -> list[float]:
        """Log odds that an answer was instructed. embeddings: [n, E], E the embedding size; returns n
        scores.
        """
        return self.regression.decision_function(embeddings).tolist()


def fit_instruction_classifier(
    instructed: np.ndarray, plain: np.ndarray, held_out: int
) -> InstructionClassifier:
    """Fits a classifier, and measures it on held-out prompts.

    Args:
        instructed: [n, E] embeddings of the answers that were drawn with the instruction, one per prompt.
        plain: [n, E] embeddings of the plain answers, in the same order of prompts.
        held_out: Number of prompts at the end that only the accuracy is measured on.

    Returns:
        The classifier, fitted on the first n - held_out prompts.

    Raises:
        ValueError: There are too few prompts to fit on, or none to measure accuracy on.
    """
    from sklearn.linear_model import LogisticRegression

    fitted = len(instructed) - held_out
    if fitted < 1 or held_out < 1:
        raise ValueError(
            f"a judge of meaning has {len(instructed)} prompts, {held_out} of them held out to measure its "
            "accuracy; accepted: at least one held out and one more to fit it on. Give more prompts"
        )
    samples = np.concatenate((instructed[:fitted], plain[:fitted]))
    labels = np.repeat((1, 0), fitted)
    regression = LogisticRegression(max_iter=1000).fit(samples, labels)
    scores = (regression.decision_function(part[fitted:]) for part in (instructed, plain))
    return InstructionClassifier(regression, accuracy=float(np.mean(np.greater(*scores))))
