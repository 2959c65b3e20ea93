"""One user's preference weights, fitted to their choices between two answers.

    P(chosen > other)  = sigmoid( v . (Psi(chosen) - Psi(other)) ),     pad_weights = v / max |v|

In: the differences of Psi (feature_sums.py) or of the weights of guided answers, [N, D]. Out: a `WeightFit`:
w, its confidence intervals, and how well it predicts choices it has not seen. Logistic regression without
intercept, since a pair has no order. Knows neither files nor models; cli/fit.py is the command.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pad_vllm.choices.logistic_posterior import GaussianPrior, weight_posterior

MIN_CHOICES = 2
"""Cross-validation leaves out at least one choice and fits the others."""

_FOLDS = 10
_NORMAL_95 = 1.959964


@dataclass(frozen=True, eq=False)
class WeightFit:
    """Weights fitted to choices. D dimensions in the adapter's order; all tensors float64, on the CPU."""

    w: Tensor
    """[D] weights, the largest |w| is 1: pad_beta is then the logits that one unit of the strongest
    dimension's feature adds, as for the single dimensions that the adapter was trained on."""

    interval: Tensor
    """[D, 2] 95% intervals (from the posterior's curvature, logistic_posterior.py), on w's scale."""

    scale: float
    """w * scale are the log-odds per unit of Psi: how consistent the choices are. Does not change w's
    direction."""

    choices: int
    """Number N of choices."""

    accuracy: float
    """Share of the choices that w, fitted to them, predicts."""

    cross_validated: float
    """Share predicted of choices left out of the fit, in ten parts (up to ten choices: one by one)."""

    baseline: float
    """Share of the same left-out choices that the best single dimension predicts."""

    @property
    def excludes_zero(self) -> list[bool]:
        """Whether each dimension's interval excludes 0, so that its sign is clear."""
        return [low > 0 or high < 0 for low, high in self.interval.tolist()]

    def pad_weights(self, dimensions: Sequence[str]) -> str:
        """The request argument: every dimension, also those whose sign is not clear, to two digits."""
        # + 0.0 turns -0.0 into 0.
        numbers = (f"{value + 0.0:.2g}" for value in self.w.tolist())
        return ",".join(f"{name}={n}" for name, n in zip(dimensions, numbers, strict=True))


def fit_weights(
    differences: Tensor,
    *,
    strength: float = 1.0,
    prior: GaussianPrior | None = None,
    nuisance: int = 0,
) -> WeightFit:
    """Fit weights to N choices by logistic regression.

    Args:
        differences: [N, D] of Psi, chosen minus rejected.
        strength: of the prior, a Gaussian around 0 of variance 4/strength on the weights of differences of
            mean square 1. It keeps the weights finite where all choices agree.
        prior: another one, of what other users like (taste_prior.py); `strength` is then not read.
        nuisance: last columns of `differences` that explain choices and are no dimensions, such as a length.

    Returns:
        The fit.

    Raises:
        ValueError: too few choices; features that are not finite; choices that do not differ or cancel out.
    """
    _require_fittable(differences, strength, prior)
    x = differences.detach().cpu().double()
    dimensions = x.shape[1] - nuisance
    every_v, every_deviation = _posterior(x, strength, prior)
    v, deviation = every_v[:dimensions], every_deviation[:dimensions]
    scale = float(v.abs().max())
    if scale < 1e-9:
        raise ValueError(
            f"the {len(x)} choices cancel out: no weights predict them better than chance. Accepted: "
            "choices that agree in something. Add choices, or look for pairs entered both ways."
        )
    half = _NORMAL_95 * deviation
    cross_validated, baseline = _cross_validate(x, dimensions, strength, prior)
    return WeightFit(
        w=v / scale,
        interval=torch.stack((v - half, v + half), dim=-1) / scale,
        scale=scale,
        choices=len(x),
        accuracy=float(_predicted(x @ every_v).mean()),
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


def _posterior(x: Tensor, strength: float, prior: GaussianPrior | None) -> tuple[Tensor, Tensor]:
    """(Weights [D], their standard deviations [D]) for differences x [N, D], in x's units.

    Without a prior of users, a dimension in which no pair differs gets 0 and an infinite deviation.
    """
    if prior is not None:
        found = weight_posterior(x.unsqueeze(0), prior, averaged=True)
        return found.mean[0], found.deviation[0]
    found = weight_posterior(x.unsqueeze(0), GaussianPrior.around_zero(x, strength))
    return found.mean[0], found.deviation[0].masked_fill(~x.any(0), math.inf)


def _cross_validate(
    x: Tensor, dimensions: int, strength: float, prior: GaussianPrior | None
) -> tuple[float, float]:
    """Shares of left-out choices that (the weights, the best single dimension) predict.

    Args:
        x: [N, D + nuisance columns] differences.
        dimensions: D.
        strength: of the prior.
        prior: of users, estimated from the left-out choices too, among all others.
    """
    count = len(x)
    # Neighbours stay together: several pairs of one prompt often follow each other in a file.
    part = torch.arange(count) * min(count, _FOLDS) // count
    left_out = part == part.unique().unsqueeze(-1)  # [parts, N]
    given = [x[~mask] for mask in left_out]
    if prior is None:
        prior = GaussianPrior.stack([GaussianPrior.around_zero(rows, strength) for rows in given])
    # All parts at once. A row of zeros says nothing, and the sign of v . x needs no averaged posterior.
    v = weight_posterior(x * ~left_out.unsqueeze(-1), prior).mean
    single = torch.stack([_best_single(rows[:, :dimensions]) for rows in given])
    fitted, best = (x * v[part]).sum(-1), (x[:, :dimensions] * single[part]).sum(-1)
    return float(_predicted(fitted).mean()), float(_predicted(best).mean())


def _best_single(x: Tensor) -> Tensor:
    """The signed unit vector [D] that predicts most of the choices x [N, D]."""
    share = _predicted(x).mean(0) if len(x) else x.new_full(x.shape[1:], 0.5)
    best = (share - 0.5).abs().argmax()
    return x.new_zeros(x.shape[1]).index_fill(0, best, 1.0 if share[best] >= 0.5 else -1.0)


def _predicted(difference: Tensor) -> Tensor:
    """1 where the chosen answer has the higher value, 1/2 for a tie, 0 otherwise."""
    return (difference > 0).float() + (difference == 0).float() / 2
