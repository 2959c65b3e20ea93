"""One user's preference weights, fitted to their choices between two answers.

    P(chosen > other)  = sigmoid( v . (Psi(chosen) - Psi(other)) ),     pad_weights = v / max |v|

In: the differences of Psi (feature_sums.py) or of the weights of guided answers, [N, D], with outcomes (ties)
and strengths where choices have them. Out: a `WeightFit`: w, its confidence intervals, and how well it
predicts choices it has not seen. Logistic regression without intercept, since a pair has no order. Knows
neither files nor models; cli/fit.py is the command.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pad_vllm.choices.fitted_weights import FittedWeights, weights_and_intervals
from pad_vllm.choices.logistic_posterior import GaussianPrior, weight_posterior

MIN_CHOICES = 2
"""Cross-validation leaves out at least one choice and fits the others."""

_FOLDS = 10


@dataclass(frozen=True, eq=False)
class WeightFit(FittedWeights):
    """Weights fitted to choices, and how well they predict choices."""

    accuracy: float
    """Share of the choices that w, fitted to them, predicts; ties are left out."""

    cross_validated: float
    """Share predicted of choices left out of the fit, in ten parts (up to ten choices: one by one)."""

    baseline: float
    """Share of the same left-out choices that the best single dimension predicts."""


class _Choices(NamedTuple):
    """N choices, turned so that nobody preferred the second answer."""

    x: Tensor
    """[N, D + nuisance columns] first answer less second."""

    outcomes: Tensor
    """[N] from 1/2, a tie, to 1."""

    strengths: Tensor
    """[N] what each counts."""

    @classmethod
    def turned(
        cls, differences: Tensor, outcomes: Tensor | None, strengths: Tensor | None
    ) -> _Choices:
        x = differences.detach().cpu().double()
        ones = torch.ones(len(x)).double()
        outcomes = ones if outcomes is None else outcomes.double()
        x = torch.where((outcomes < 0.5).unsqueeze(-1), -x, x)
        strengths = ones if strengths is None else strengths.double()
        return cls(x, outcomes.maximum(1 - outcomes), strengths)

    @property
    def decided(self) -> Tensor:
        """[N] bool: no tie."""
        return self.outcomes > 0.5


def fit_weights(
    differences: Tensor,
    *,
    strength: float = 1.0,
    prior: GaussianPrior | None = None,
    nuisance: int = 0,
    outcomes: Tensor | None = None,
    choice_strengths: Tensor | None = None,
) -> WeightFit:
    """Fit weights to N choices by logistic regression.

    Args:
        differences: [N, D] of Psi, chosen minus rejected.
        strength: of the prior, a Gaussian around 0 of variance 4/strength on the weights of differences of
            mean square 1. It keeps the weights finite where all choices agree.
        prior: another one, of what other users like (taste_prior.py); `strength` is then not read.
        nuisance: last columns of `differences` that explain choices and are no dimensions, such as a length.
        outcomes: [N] from 0 to 1, how far the first answer was preferred, 1/2 for a tie; None: always 1.
        choice_strengths: [N] above 0, what each choice counts; None: always 1.

    Returns:
        The fit.

    Raises:
        ValueError: too few choices; features that are not finite; choices that do not differ or cancel out.
    """
    _require_fittable(differences, strength, prior)
    choices = _Choices.turned(differences, outcomes, choice_strengths)
    dimensions = differences.shape[1] - nuisance
    every_v, every_deviation = _posterior(choices, strength, prior)
    w, interval, scale = weights_and_intervals(every_v[:dimensions], every_deviation[:dimensions])
    if not scale:
        raise ValueError(
            f"the {len(differences)} choices cancel out: no weights predict them better than chance. "
            "Accepted: choices that agree in something. Add choices, or look for pairs entered both ways."
        )
    cross_validated, baseline = _cross_validate(choices, dimensions, strength, prior)
    return WeightFit(
        w=w,
        interval=interval,
        scale=scale,
        choices=len(differences),
        accuracy=_share_predicted(choices.x @ every_v, choices.decided),
        cross_validated=cross_validated,
        baseline=baseline,
    )


def _require_fittable(differences: Tensor, strength: float, prior: GaussianPrior | None) -> None:
    if not 0 < strength < math.inf:
        raise ValueError(
            f"strength is {strength:g}; accepted: a finite number above 0, without which choices "
            "that all agree have no finite weights. Leave it out for 1."
        )
    if len(differences) < MIN_CHOICES and prior is None:
        raise ValueError(
            f"{len(differences)} choices; accepted: at least {MIN_CHOICES}. Add choices."
        )
    broken = (~differences.isfinite()).any(-1).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"the features of choice {broken[0] + 1} ({len(broken)} in all) are NaN or infinite; "
            "accepted: finite numbers. Run the base in float32, or train the adapter again."
        )
    if not differences.any() and prior is None:
        raise ValueError(
            "every chosen answer has the same features as the rejected one, so nothing tells them "
            "apart. Accepted: pairs that differ. Use an adapter that is trained, or other pairs."
        )


def _posterior(
    choices: _Choices, strength: float, prior: GaussianPrior | None
) -> tuple[Tensor, Tensor]:
    """(Weights [D], their standard deviations [D]) of choices, in x's units.

    Without a prior of users, a dimension in which no pair differs gets 0 and an infinite deviation.
    """
    x, outcomes, strengths = (values.unsqueeze(0) for values in choices)
    found = weight_posterior(
        x,
        GaussianPrior.around_zero(choices.x, strength) if prior is None else prior,
        averaged=prior is not None,
        outcomes=outcomes,
        choice_strengths=strengths,
    )
    mean, deviation = found.mean[0], found.deviation[0]
    if prior is None:
        deviation = deviation.masked_fill(~choices.x.any(0), math.inf)
    return mean, deviation


def _cross_validate(
    choices: _Choices, dimensions: int, strength: float, prior: GaussianPrior | None
) -> tuple[float, float]:
    """Shares of left-out choices that (the weights, the best single dimension) predict.

    Args:
        choices: N.
        dimensions: D.
        strength: of the prior.
        prior: of users, estimated from the left-out choices too, among all others.
    """
    x, count = choices.x, len(choices.x)
    # Neighbours stay together: several pairs of one prompt often follow each other in a file.
    part = torch.arange(count) * min(count, _FOLDS) // count
    left_out = part == part.unique().unsqueeze(-1)  # [parts, N]
    if prior is None:
        given = [x[~mask] for mask in left_out]
        prior = GaussianPrior.stack([GaussianPrior.around_zero(rows, strength) for rows in given])
    # All parts at once: what is left out counts nothing. The sign of v . x needs no averaged posterior.
    v = weight_posterior(
        x.expand(len(left_out), -1, -1),
        prior,
        outcomes=choices.outcomes.expand(left_out.shape),
        choice_strengths=choices.strengths * ~left_out,
    ).mean
    single = torch.stack(
        [_best_single(x[choices.decided & ~mask][:, :dimensions]) for mask in left_out]
    )
    fitted, best = (x * v[part]).sum(-1), (x[:, :dimensions] * single[part]).sum(-1)
    return _share_predicted(fitted, choices.decided), _share_predicted(best, choices.decided)


def _best_single(x: Tensor) -> Tensor:
    """The signed unit vector [D] that predicts most of the choices x [N, D]."""
    share = _predicted(x).mean(0) if len(x) else x.new_full(x.shape[1:], 0.5)
    best = (share - 0.5).abs().argmax()
    return x.new_zeros(x.shape[1]).index_fill(0, best, 1.0 if share[best] >= 0.5 else -1.0)


def _share_predicted(difference: Tensor, decided: Tensor) -> float:
    """Of the decided ones among N choices [N]; 1/2 where all are ties."""
    return float(_predicted(difference[decided]).mean()) if decided.any() else 0.5


def _predicted(difference: Tensor) -> Tensor:
    """1 where the chosen answer has the higher value, 1/2 for a tie, 0 otherwise."""
    return (difference > 0).float() + (difference == 0).float() / 2
