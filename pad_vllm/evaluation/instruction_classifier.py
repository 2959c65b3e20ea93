"""A judge of meaning: does an answer lean towards those of a wish, or towards plain ones?

In: sentence embeddings of answers that were told the wish, and of plain ones, to other prompts than those
that are judged. Out: a logistic regression of them, its accuracy on prompts it was not fitted on, and scores.
It knows what a wish does to answers, and nothing of rewards: no PersRM ever sees it or its texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class InstructionClassifier:
    """A direction among embeddings."""

    regression: Any  # scikit-learn's LogisticRegression
    accuracy: float  # on pairs of a told and a plain answer to prompts it was not fitted on

    def __call__(self, embeddings: np.ndarray) -> list[float]:
        """Log odds of having been told the wish: [n, E] -> n numbers."""
        return self.regression.decision_function(embeddings).tolist()


def fit_instruction_classifier(
    instructed: np.ndarray, plain: np.ndarray, held_out: int
) -> InstructionClassifier:
    """told, plain [n, E], in the order of their prompts, of which the last `held_out` are for accuracy.

    Raises ValueError where nothing is left to fit on.
    """
    from sklearn.linear_model import LogisticRegression

    kept = len(instructed) - held_out
    if kept < 1 or held_out < 1:
        raise ValueError(
            f"a judge of meaning has {len(instructed)} prompts, {held_out} of them to be tried on; accepted: at "
            "least one more to fit it on. Give more prompts"
        )
    lines = np.concatenate((instructed[:kept], plain[:kept]))
    model = LogisticRegression(max_iter=1000).fit(lines, np.repeat((1, 0), kept))
    scored = (model.decision_function(part[kept:]) for part in (instructed, plain))
    return InstructionClassifier(model, accuracy=float(np.mean(np.greater(*scored))))
