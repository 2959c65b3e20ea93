"""How probable a fit makes choices that were left out of it: what priors and forms of features are chosen by.

In: differences [N, D] of each user, chosen less other, and a function that has a prior for users from the
choices that are given. Out: one number. Knows not what the features are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pad_vllm.choices.logistic_posterior import GaussianPrior, weight_posterior

_PARTS = 5

PriorOf = Callable[[Sequence[Tensor]], GaussianPrior]
"""Given choices [N, D] of each user -> the prior of all, or of each."""


def prior_around_zero(strength: float) -> PriorOf:
    """Each user's own: nothing is known but the units of the features."""
    return lambda given: GaussianPrior.stack(
        [GaussianPrior.around_zero(x, strength) for x in given]
    )


def left_out_log_probability(
    users: Sequence[Tensor], prior_of: PriorOf, *, averaged: bool = False
) -> float:
    """Mean log probability of every user's choices, each left out once, in five parts. A coin has -0.693.

    Args:
        users: differences [N, D] float64 of each; a user's only choice is told by the prior alone.
        prior_of: is asked anew for each part.
        averaged: kind of posterior (`weight_posterior`).
    """
    total = 0.0
    for part in range(_PARTS):
        # A user's first choice is left out in another part than the next user's.
        masks = [(torch.arange(len(x)) + u) % _PARTS == part for u, x in enumerate(users)]
        given = [x[~mask] for x, mask in zip(users, masks, strict=True)]
        unseen = [x[mask] for x, mask in zip(users, masks, strict=True)]
        found = weight_posterior(
            pad_sequence(given, batch_first=True), prior_of(given), averaged=averaged
        )
        logs = found.log_probabilities(pad_sequence(unseen, batch_first=True))
        total += sum(float(row[: len(x)].sum()) for row, x in zip(logs, unseen, strict=True))
    return total / max(sum(map(len, users)), 1)
