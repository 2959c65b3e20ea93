"""A prior over people: the mean and the covariance of many users' weights, estimated from their choices.

    v_u ~ N(mean, covariance)        what users share, and how and in what they differ
    E step: m_u, C_u = the averaged posterior of every v_u (logistic_posterior.py)
    M step: mean = sum m_u / (U + 1)
            covariance = (S + n I s) / (U + n),   S = sum (m_u - mean)(m_u - mean)^T + C_u,   s: its scale

Empirical Bayes by EM. n users of an isotropic covariance stand beside the U users: few choices say little
of D (D+1)/2 covariances. How many, or that there is no prior at all, is decided by the choices that it
predicts when they are left out. In: differences [N, D] of each user. Out: a `TastePrior`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pad_vllm.choices.left_out_choices import (
    left_out_log_probability,
    prior_around_zero,
)
from pad_vllm.choices.logistic_posterior import PRIOR_VARIANCE, GaussianPrior, weight_posterior

MIN_USERS = 10
"""Fewer users are fitted alone: mean and covariance of so few say little of the next one."""

_MAX_ROUNDS = 60
_STEPS_A_ROUND = 3  # of Newton's method: the next round goes on where this one ends
_TOLERANCE = 1e-2  # of mean and covariance, where the prior that EM begins with has variance 1
_MOST_SPREAD = 8.0
"""Of log-odds, at which a taste tells 19 choices in 20. Few choices in many dimensions agree with some
weights whatever they are, the more so the larger the prior, and EM would grow without end."""
_ISOTROPIC_USERS = {"covariance": 1.0, "nearly isotropic covariance": 8.0}
"""Kind of prior -> n for each dimension. With one, users whose tastes lie along few directions are found from
few choices (simulated: cosine 0.74 for 0.66 with four at ten choices); with eight, nothing is lost where they
differ in every direction.
"""
NO_PRIOR = "none"
"""Kind of a prior that knows nothing of people: each user is fitted alone."""


@dataclass(frozen=True, eq=False)
class TastePrior:
    """What users' choices say of users."""

    prior: GaussianPrior | None
    """None where users' own choices predict best what they choose."""

    kind: str
    """Of `left_out`, the one that predicts best."""

    left_out: dict[str, float]
    """Kind -> mean log probability of choices that were left out, in five parts. A coin has -0.693."""


def estimate_prior(users: Sequence[Tensor], strength: float = 1.0) -> TastePrior:
    """Estimate the prior of the kind that predicts left-out choices best.

    Args:
        users: differences [N, D] of each user, chosen less other.
        strength: of the prior around 0 (`GaussianPrior.around_zero`) that is compared, and which is one of
            the users that decide the scale.
    """
    x = [rows.detach().cpu().double() for rows in users]
    left_out = {
        kind: left_out_log_probability(x, partial(_shared_prior, kind, strength), averaged=True)
        for kind in _ISOTROPIC_USERS
    }
    left_out[NO_PRIOR] = left_out_log_probability(x, prior_around_zero(strength))
    kind = max(left_out, key=left_out.__getitem__)
    prior = None if kind == NO_PRIOR else _shared_prior(kind, strength, x)
    return TastePrior(prior, kind, left_out)


def _shared_prior(kind: str, strength: float, users: Sequence[Tensor]) -> GaussianPrior:
    """The prior under which the users' choices are most probable.

    Args:
        kind: of `_ISOTROPIC_USERS`.
        strength: of the prior that it begins with.
        users: differences [N, D] float64 of each.
    """
    begin = GaussianPrior.around_zero(torch.cat(list(users)), strength)
    unit = begin.covariance.diagonal().sqrt()
    x = pad_sequence(list(users), batch_first=True) * unit
    count, size = len(x), x.shape[-1]
    eye, found = torch.eye(size).double(), None
    prior = GaussianPrior(torch.zeros(size).double(), eye)
    added = _ISOTROPIC_USERS[kind] * size
    for _ in range(_MAX_ROUNDS):
        found = weight_posterior(x, prior, averaged=True, start=found, steps=_STEPS_A_ROUND)
        mean = found.mean.sum(0) / (count + 1)
        off = found.mean - mean
        scatter = off.T @ off + found.covariance.sum(0)
        scale = (scatter.trace() / size + MIN_USERS) / (count + MIN_USERS)
        covariance = (scatter + added * scale * eye) / (count + added)
        excess = max(PRIOR_VARIANCE * float(covariance.trace()) / _MOST_SPREAD**2, 1.0)
        mean, covariance = mean / excess**0.5, covariance / excess
        change = max((mean - prior.mean).abs().max(), (covariance - prior.covariance).abs().max())
        prior = GaussianPrior(mean, covariance)
        if change < _TOLERANCE:
            break
    return GaussianPrior(prior.mean * unit, prior.covariance * unit.outer(unit))
