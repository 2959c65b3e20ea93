"""Held-out pair accuracy: how often the response that a preference prefers has the higher reward.

In: values of responses and their scores. Out: shares. A tie counts half, so that a constant reward gets one
half. Knows nothing of where values come from: a PersRM's Psi, or a prompted base.
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
"""Name of the mixes of `preferences_to_test`."""

_SEED = 99  # apart from the seeds that training draws from: these mixes are unseen


@dataclass(frozen=True)
class TestedPreference:
    """A preference, or several under one name, and how far they lie from the trained axes."""

    name: str
    w: Tensor
    """[W, D]"""

    angle: float
    """Mean angle in degrees to the nearest single dimension; half of training's draws are single ones."""


@dataclass(frozen=True)
class PairAccuracy:
    """Shares of the pairs that are ranked as their scores are. The field names are keys of the model card."""

    pairs: float
    """Share of all pairs; NaN if there are none."""

    clear: float
    """Share of the pairs with a clear margin; NaN if there are none."""

    count: int
    """Number of pairs."""


def preferences_to_test(
    dimensions: Sequence[str], scores: Iterable[Tensor], mixes: int = 32
) -> list[TestedPreference]:
    """Every dimension alone, and mixes that training has not drawn.

    Args:
        dimensions: D names.
        scores: [R, D] of each prompt. Mixes are over the most dimensions that any prompt has scores for.
        mixes: how many; none if no prompt has scores for two dimensions.

    Returns:
        D preferences, then the mixes under the name MIXES.
    """
    axes = torch.eye(len(dimensions))
    tested = [TestedPreference(name, axes[i : i + 1], 0.0) for i, name in enumerate(dimensions)]
    known = max((~score.isnan().any(0) for score in scores), key=lambda mask: int(mask.sum()))
    if known.sum() > 1:
        drawn = draw_for_known(known, 16 * mixes, torch.Generator().manual_seed(_SEED))
        drawn = drawn[(drawn != 0).sum(-1) > 1][:mixes]
        axes_and_opposites = torch.cat([axes, -axes])
        angles = [angle_to_nearest(w, axes_and_opposites) for w in drawn]
        tested.append(TestedPreference(MIXES, drawn, sum(angles) / len(angles)))
    return tested


ResponseValues = Callable[[int, Tensor], Tensor | None]
"""(number of a prompt, w [W, D]) -> values [W, R] of its responses, or None to leave it out."""


def measure_pair_accuracy(
    values: ResponseValues,
    scores: Sequence[Tensor],
    tested: Iterable[TestedPreference],
    clear_margin: float,
) -> dict[str, PairAccuracy]:
    """Compare the order of values with the order of scores, over the pairs of responses of each prompt.

    Args:
        values: values of a prompt's responses.
        scores: [R, D] of each prompt, in spreads; NaN: unknown.
        tested: preferences.
        clear_margin: least margin of a clear pair, in spreads.

    Returns:
        Name of a preference -> its accuracy.
    """
    accuracies = {}
    for preference in tested:
        counts = torch.zeros(4)
        for number, score in enumerate(scores):
            margins = preference_loss.pair_margins(score, preference.w)
            if not (margins != 0).any():
                continue
            value = values(number, preference.w)
            if value is not None:
                hits, pairs = preference_loss.pair_hits(value, margins, 0.0)
                clear_hits, clear_pairs = preference_loss.pair_hits(value, margins, clear_margin)
                counts += torch.stack([c.sum() for c in (hits, pairs, clear_hits, clear_pairs)])
        accuracies[preference.name] = _accuracy(*counts.tolist())
    return accuracies


def _accuracy(hits: float, pairs: float, clear_hits: float, clear_pairs: float) -> PairAccuracy:
    return PairAccuracy(
        pairs=hits / pairs if pairs else math.nan,
        clear=clear_hits / clear_pairs if clear_pairs else math.nan,
        count=int(pairs),
    )
