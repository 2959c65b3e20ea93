"""A person's weights from all that was observed of them, few choices or none, of either kind.

    v ~ N(mean, covariance)      the prior: of people, or around what the person said they like
    log-odds of a choice = v . x

x of guided answers are differences of weights. Those of given texts are divided by each dimension's root mean
square over the person's own such choices: one spread of a feature then counts as one unit of weight, and the
lengths, divided alike, are a column of their own, fitted and dropped. In: ObservedChoices, a GaussianPrior.
Out: a ProfileFit. Unlike `fit_weights` it refuses nothing: what says nothing leaves the prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pad_vllm.choices.fitted_weights import FittedWeights, weights_and_intervals
from pad_vllm.choices.logistic_posterior import (
    PRIOR_VARIANCE,
    GaussianPrior,
    WeightPosterior,
    weight_posterior,
)
from pad_vllm.choices.observed_choice import ObservedChoice


@dataclass(frozen=True, eq=False)
class ProfileFit(FittedWeights):
    """What is known of one person."""

    posterior: WeightPosterior
    """Of v, of one user: [1, D] and [1, D, D]. What `propose_question` takes."""


def fit_profile(
    choices: Sequence[ObservedChoice], prior: GaussianPrior, dimensions: Sequence[str]
) -> ProfileFit:
    """Weights after N choices.

    Args:
        choices: of one person, in any order.
        prior: mean [D] and covariance [D, D] in log-odds per unit of weight.
        dimensions: D names.

    Raises:
        ValueError: a choice or a prior of another number of dimensions.
    """
    size = len(dimensions)
    for number, shape in enumerate([prior.mean.shape, *(c.x.shape for c in choices)]):
        if shape != (size,):
            whose = f"choice {number}" if number else "the prior"
            raise ValueError(
                f"{whose} has {shape[-1]} dimensions; accepted: {size}, of {', '.join(dimensions)}. "
                "Weights of another adapter say nothing here"
            )
    found = weight_posterior(
        _differences(choices, size).unsqueeze(0),
        _with_length(prior),
        averaged=True,
        outcomes=torch.tensor([[c.outcome for c in choices]]).double(),
        choice_strengths=torch.tensor([[c.strength for c in choices]]).double(),
    )
    posterior = WeightPosterior(found.mean[:, :size], found.covariance[:, :size, :size])
    w, interval, scale = weights_and_intervals(posterior.mean[0], posterior.deviation[0])
    return ProfileFit(w, interval, scale, len(choices), posterior)


def _differences(choices: Sequence[ObservedChoice], size: int) -> Tensor:
    """[N, D + 1] in units of weight, lengths last; size: D."""
    x = torch.zeros(len(choices), size + 1).double()
    of_texts = torch.tensor([c.length is not None for c in choices], dtype=torch.bool)
    for row, choice in zip(x, choices, strict=True):
        row[:size], row[size] = choice.x, choice.length or 0.0
    spread = x[of_texts].square().mean(0).sqrt()
    x[of_texts] /= spread.where(spread > 0, torch.ones_like(spread))
    return x


def _with_length(prior: GaussianPrior) -> GaussianPrior:
    """[D + 1]: nobody's liking of a length is known."""
    length = torch.tensor([[PRIOR_VARIANCE]]).double()
    covariance = torch.block_diag(prior.covariance.double(), length)
    return GaussianPrior(torch.cat((prior.mean.double(), torch.zeros(1).double())), covariance)
