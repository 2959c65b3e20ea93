"""What one act of a person says of their weights: a choice, a tie, or a thumb on one answer.

Two kinds of differences x, in one posterior (profile_fit.py):

    answers that PAD guided     x = w_first - w_second [D]: v . x are the log-odds, v in log-odds per unit of
                                weight. A thumb compares with the unguided answer: x = w_answer
    any two texts               x = mean over tokens of the PersRM's features, first less second, and the
                                difference of the lengths. profile_fit.py divides each dimension by its spread

In: weights, or sums of features and lengths. Out: an ObservedChoice. Knows no text and no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pad_vllm.choices.choice_form import AnswerPairs

TIE = 0.5
MAX_STRENGTH = 10.0
"""One choice counts as ten at most, so that no single act decides a profile."""


@dataclass(frozen=True, eq=False)
class ObservedChoice:
    """One observation. Raises ValueError for numbers that no posterior can take."""

    x: Tensor
    """[D] float64, first less second: weights, or means of features where `length` is a number."""

    outcome: float = 1.0
    """1: the first was preferred; 0: the second; TIE; or anything between."""

    strength: float = 1.0
    """How many choices it counts as."""

    length: float | None = None
    """Of given texts: tokens of the first less those of the second. None: x are weights."""

    def __post_init__(self) -> None:
        if not 0 <= self.outcome <= 1:
            raise ValueError(
                f"outcome is {self.outcome:g}; accepted: 0 (the second answer) to 1 (the first), "
                f"{TIE} for a tie"
            )
        if not 0 < self.strength <= MAX_STRENGTH:
            raise ValueError(
                f"strength is {self.strength:g}; accepted: above 0, at most {MAX_STRENGTH:g}. Leave it "
                "out for 1"
            )
        if not self.x.isfinite().all() or not math.isfinite(self.length or 0.0):
            raise ValueError(
                "the answers' features are NaN or infinite; accepted: finite numbers. Run the base in "
                "float32"
            )

    @classmethod
    def between_weights(
        cls, first: Tensor, second: Tensor, *, outcome: float = 1.0, strength: float = 1.0
    ) -> ObservedChoice:
        """A choice between two guided answers.

        Args:
            first: [D] weights that guided the first answer; zeros: it was unguided.
            second: [D] those of the second.
            outcome: 1 for the first, 0 for the second, TIE.
            strength: how many choices it counts as.
        """
        return cls(first.double() - second.double(), outcome, strength)

    @classmethod
    def thumb(cls, weights: Tensor, *, liked: bool, strength: float = 1.0) -> ObservedChoice:
        """A thumb on one answer, taken as a choice between it and the unguided one.

        Args:
            weights: [D] that guided the answer.
            liked: thumb up.
            strength: how many choices it counts as.
        """
        return cls(weights.double(), float(liked), strength)

    @classmethod
    def between_texts(
        cls, sums: Tensor, lengths: Tensor, *, outcome: float = 1.0, strength: float = 1.0
    ) -> ObservedChoice:
        """A choice between two given texts.

        Args:
            sums: [2, D] Psi of the first and of the second (feature_sums.py).
            lengths: [2] their tokens, at least 1.
            outcome: 1 for the first, 0 for the second, TIE.
            strength: how many choices it counts as.
        """
        pair = AnswerPairs(sums.unsqueeze(0), lengths.unsqueeze(0))
        (row,) = pair.differences("mean with length")
        return cls(row[:-1], outcome, strength, float(row[-1]))
