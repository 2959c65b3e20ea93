"""Weights of every user of a file: each from their own choices, and from what all users share.

In: differences [N, D] of each user's choices. Out: a `WeightFit` each, and the prior that they were fitted
under. With fewer than `MIN_USERS` users, or where their choices do not say that a prior helps, each is
fitted alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pad_vllm.choices.fit_weights import WeightFit, fit_weights
from pad_vllm.choices.logistic_posterior import GaussianPrior
from pad_vllm.choices.taste_prior import MIN_USERS, TastePrior, estimate_prior


@dataclass(frozen=True, eq=False)
class UserFits:
    """What was learned of the users."""

    fits: dict[str | None, WeightFit]
    """By user; None: the one user of a file that names none."""

    prior: TastePrior | None
    """None where none was estimated."""


def fit_users(
    differences: Mapping[str | None, Tensor],
    *,
    strength: float = 1.0,
    with_prior: bool = True,
    known_prior: GaussianPrior | None = None,
    nuisance: int = 0,
) -> UserFits:
    """Fit weights to each user's choices.

    Args:
        differences: user -> [N, D], chosen minus rejected.
        strength: of the prior around 0, for users who are fitted alone (`fit_weights`).
        with_prior: whether to estimate what users share.
        known_prior: of people, or around what the one user said: then nothing is estimated.
        nuisance: last columns that are no dimensions (`fit_weights`).

    Returns:
        The fits, in the order of `differences`.

    Raises:
        ValueError: choices that cannot be fitted, with their user's name.
    """
    prior = None
    if known_prior is None and with_prior and len(differences) >= MIN_USERS:
        prior = estimate_prior(list(differences.values()), strength)
    shared = known_prior if prior is None else prior.prior
    fits = {
        user: _fit(user, rows, strength, shared, nuisance) for user, rows in differences.items()
    }
    return UserFits(fits, prior)


def _fit(
    user: str | None,
    differences: Tensor,
    strength: float,
    prior: GaussianPrior | None,
    nuisance: int,
) -> WeightFit:
    try:
        return fit_weights(differences, strength=strength, prior=prior, nuisance=nuisance)
    except ValueError as error:
        if user is None:
            raise
        raise ValueError(f"user {user!r}: {error}") from None
