"""A profile's weights from its evidence, and the question that would teach most.

In: evidence by name of dimension, the dimensions of the adapter that is served. Out: weights and intervals
by name. Evidence on dimensions that the adapter does not have is left out. choices/ has the mathematics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pad_vllm.choices.logistic_posterior import GaussianPrior
from pad_vllm.choices.next_question import propose_question
from pad_vllm.choices.observed_choice import ObservedChoice
from pad_vllm.choices.profile_fit import ProfileFit, fit_profile
from pad_vllm.profiles.profile import NamedChoice, ProfileEvidence, Weights

_DIGITS = 3
"""Of weights: a request shows and sends them, and more says nothing."""


@dataclass(frozen=True)
class ProfileWeights:
    """What evidence says of a user."""

    weights: dict[str, float]
    """Of every dimension. Without choices those that were stated, or that conversations teach. With choices
    the largest |weight| is that of what was stated, or 1; less where conversations say most of it.
    """

    intervals: dict[str, tuple[float, float]]
    """95% intervals; empty without choices."""


class WeightLearner:
    """Of the users of one adapter."""

    def __init__(self, dimensions: Sequence[str], prior: GaussianPrior | None = None) -> None:
        """Learn nothing yet.

        Args:
            dimensions: D names, in the adapter's order.
            prior: of people, in log-odds per unit of weight; None: nothing is known of people.
        """
        self.dimensions = tuple(dimensions)
        self._prior = prior or GaussianPrior.of_unit_weights(len(self.dimensions))

    def learn(self, evidence: ProfileEvidence) -> ProfileWeights:
        """The weights that all of a user's evidence says."""
        begin = self._begin(evidence)
        if not evidence.choices:
            return ProfileWeights({name: begin.get(name, 0.0) for name in self.dimensions}, {})
        prior = self._prior_of(evidence, begin)
        fit = self._fit(evidence, prior)
        largest = self._largest(evidence, begin, prior)
        rows = (fit.interval * largest).tolist()
        return ProfileWeights(
            dict(zip(self.dimensions, map(_rounded, (fit.w * largest).tolist()), strict=True)),
            {
                name: (_rounded(low), _rounded(high))
                for name, (low, high) in zip(self.dimensions, rows, strict=True)
            },
        )

    def propose(self, evidence: ProfileEvidence) -> tuple[dict[str, float], dict[str, float]]:
        """Weights of the two answers whose choice would teach most of the user."""
        prior = self._prior_of(evidence, self._begin(evidence))
        first, second = propose_question(self._fit(evidence, prior).posterior)
        return self._named(first), self._named(second)

    def _begin(self, evidence: ProfileEvidence) -> dict[str, float]:
        """Weights that choices begin with: what was stated, or else the mean of what conversations teach, as
        if one more had taught nothing. None of them teaches a weight above 1.
        """
        if evidence.stated is not None:
            return self._known(evidence.stated)
        taught = [self._vector(one) for one in evidence.conversations]
        capped = [w / w.abs().max().clamp_min(1) for w in taught]
        return self._named(sum(capped, self._vector({})) / (len(capped) + 1))

    def _prior_of(self, evidence: ProfileEvidence, begin: Weights) -> GaussianPrior:
        w = self._vector(begin)
        firmness = 1.0 if evidence.stated is not None else float(w.abs().max())
        return self._prior.around_stated(w, firmness)

    def _fit(self, evidence: ProfileEvidence, prior: GaussianPrior) -> ProfileFit:
        choices = [self._observed(one) for one in evidence.choices]
        return fit_profile(choices, prior, self.dimensions)

    def _largest(self, evidence: ProfileEvidence, begin: Weights, prior: GaussianPrior) -> float:
        """The largest |weight| of a user with choices: that of what was stated, 1 without, and between what
        conversations teach and 1 in proportion to what either says.

        Args:
            evidence: of the user.
            begin: weights that choices begin with.
            prior: around these.
        """
        largest = max(map(abs, begin.values()), default=0.0)
        if not largest or evidence.stated is not None:
            return largest or 1.0
        people = (1 - largest) * self._prior.mean
        gathered = float((prior.mean - people).abs().max())
        chosen = self._fit(evidence, self._prior).scale
        return (gathered * largest + chosen) / (gathered + chosen)

    def _observed(self, choice: NamedChoice) -> ObservedChoice:
        return ObservedChoice(
            self._vector(choice.x), choice.outcome, choice.strength, choice.length
        )

    def _known(self, weights: Weights) -> dict[str, float]:
        return {name: weight for name, weight in weights.items() if name in self.dimensions}

    def _vector(self, weights: Weights) -> Tensor:
        return torch.tensor([weights.get(name, 0.0) for name in self.dimensions]).double()

    def _named(self, w: Tensor) -> dict[str, float]:
        return dict(zip(self.dimensions, map(_rounded, w.tolist()), strict=True))


def _rounded(number: float) -> float:
    return float(f"{number + 0.0:.{_DIGITS}g}")
