"""Held-out pair accuracy: how often the response that a preference prefers has the higher reward.

In: values of responses and their scores. Out: shares. A tie counts half, so that a reward which says
nothing gets one half. Knows nothing of where values come from: a PersRM's Psi, or a prompted base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pad_vllm.training.data.synthetic_preferences import angle_to_nearest, draw_for_known
from pad_vllm.training.objective import preference_loss

MIXES = "mixes"
_SEED = 99  # apart from the seeds that training draws from: these mixes are unseen


@dataclass(frozen=True)
class TestedPreference:
    """A preference, or several under one name, and how far they lie from the trained axes."""

    name: str
    w: Tensor
    """[W, D]"""

    angle: float
    """Mean angle in degrees to the nearest single dimension; half of training's draws are such."""


@dataclass(frozen=True)
class PairAccuracy:
    """Shares of the pairs ranked rightly, NaN of no pairs, and how many pairs there were."""

    pairs: float
    clear: float
    count: int


def preferences_to_test(
    dimensions: Sequence[str], scores: Iterable[Tensor], mixes: int = 32
) -> list[TestedPreference]:
    """Every dimension alone, and mixes that training has not drawn.

    scores [R, D] of the prompts: mixes are over the most dimensions that any prompt has scores for.
    """
    axes = torch.eye(len(dimensions))
    tested = [TestedPreference(name, axes[i : i + 1], 0.0) for i, name in enumerate(dimensions)]
    known = max((~score.isnan().any(0) for score in scores), key=lambda mask: int(mask.sum()))
    if known.sum() > 1:
        drawn = draw_for_known(known, 16 * mixes, torch.Generator().manual_seed(_SEED))
        drawn = drawn[(drawn != 0).sum(-1) > 1][:mixes]
        nearest = torch.cat([axes, -axes])
        angles = [angle_to_nearest(w, nearest) for w in drawn]
        tested.append(TestedPreference(MIXES, drawn, sum(angles) / len(angles)))
    return tested


ResponseValues = Callable[[int, Tensor], Tensor | None]
"""Number of a prompt and w [W, D] -> values [W, R] of its responses, or None to leave it out."""


def measure_pair_accuracy(
    values: ResponseValues,
    scores: Sequence[Tensor],
    tested: Iterable[TestedPreference],
    clear_margin: float,
) -> dict[str, PairAccuracy]:
    """scores [R, D] of every prompt in spreads, NaN where unknown; least: the margin of clear pairs."""
    accuracies = {}
    for preference in tested:
        counts = torch.zeros(4)
        for number, score in enumerate(scores):
            margins = preference_loss.pair_margins(score, preference.w)
            if not (margins != 0).any():
                continue
            value = values(number, preference.w)
            if value is not None:
                every = preference_loss.pair_hits(value, margins, 0.0)
                clear = preference_loss.pair_hits(value, margins, clear_margin)
                counts += torch.stack([part.sum() for part in (*every, *clear)])
        hits, pairs, clear_hits, clear_pairs = counts.tolist()
        shares = _share(hits, pairs), _share(clear_hits, clear_pairs)
        accuracies[preference.name] = PairAccuracy(*shares, int(pairs))
    return accuracies


def _share(hits: float, pairs: float) -> float:
    return hits / pairs if pairs else math.nan
