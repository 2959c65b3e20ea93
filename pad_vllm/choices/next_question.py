"""The two weight vectors whose answers would teach most of a person, given what is known.

    w and -w, |w| = LENGTH, along the direction in which the posterior is widest, of those in which it does
    not know which answer the person would prefer:   max w^T covariance w   with   w . mean = 0

That is the choice with the largest expected reduction of the posterior's entropy among pairs of weights of
one length: its outcome is a coin toss under the mean, and depends most on what is not known. In: a
WeightPosterior of one user. Out: two weight vectors. Knows neither prompts nor answers. What else was tried
(samples of the posterior, single dimensions, random pairs) lies in benchmarks/users/proposed_questions.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pad_vllm.choices.logistic_posterior import WeightPosterior

LENGTH = 1.5
"""Of both weight vectors, where single dimensions have 1. What limits a choice is how little two answers
differ by their weights (benchmarks/users/planted_limits.py); still longer ones cost fluency."""

_AS_WIDE = 0.8
"""Directions of at least this share of the largest variance are drawn from: a question that is asked again
after it was skipped is another one, and the first questions of two people differ."""


def propose_question(
    posterior: WeightPosterior, rng: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The weights [D] that guide the first answer and the second one.

    Args:
        posterior: of one user (`ProfileFit.posterior`).
        rng: decides among directions that teach as much, and which answer comes first; None: PyTorch's own.
    """
    variances, directions = _undecided_directions(posterior.mean[0], posterior.covariance[0])
    widest = (variances >= _AS_WIDE * variances.max()).double()
    w = LENGTH * directions[:, torch.multinomial(widest, 1, generator=rng)].squeeze(-1)
    if torch.rand((), generator=rng) < 0.5:
        w = -w
    return w, -w


def _undecided_directions(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """(variances [D], unit vectors in columns [D, D]) across the mean [D]; the mean's own has variance 0."""
    across = torch.eye(len(mean), dtype=mean.dtype)
    length = mean.norm()
    if length > 0 and len(mean) > 1:  # of a single dimension there is nothing else to ask
        across = across - torch.outer(mean, mean) / length.square()
    found = torch.linalg.eigh(across @ covariance @ across)
    return found.eigenvalues, found.eigenvectors
