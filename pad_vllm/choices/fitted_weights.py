"""Weights that a person's choices say, as a request takes them: w, its intervals, its text.

    pad_weights = v / max |v|,   v: log-odds per unit of a feature or a weight

In: mean and deviation of v. Out: `FittedWeights`. Knows not where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_NORMAL_95 = 1.959964
_NOTHING = 1e-9
"""Largest |v| of choices that cancel out: no weights predict them better than chance."""


@dataclass(frozen=True, eq=False)
class FittedWeights:
    """D dimensions in the adapter's order; all tensors float64, on the CPU."""

    w: Tensor
    """[D] weights, the largest |w| is 1: pad_beta is then the logits that one unit of the strongest
    dimension's feature adds, as for the single dimensions that the adapter was trained on. Zeros where
    nothing is known."""

    interval: Tensor
    """[D, 2] 95% intervals (from the posterior's curvature, logistic_posterior.py), on w's scale; where
    nothing is known, in units of the widest one's half."""

    scale: float
    """w * scale are the log-odds per unit of Psi or of weight: how consistent the choices are. Does not
    change w's direction. 0 where nothing is known."""

    choices: int
    """Number N of choices."""

    @property
    def excludes_zero(self) -> list[bool]:
        """Whether each dimension's interval excludes 0, so that its sign is clear."""
        return [low > 0 or high < 0 for low, high in self.interval.tolist()]

    def pad_weights(self, dimensions: Sequence[str]) -> str:
        """The request argument: every dimension, also those whose sign is not clear, to two digits."""
        return weights_text(self.w, dimensions)


def weights_text(w: Tensor, dimensions: Sequence[str]) -> str:
    """pad_weights of w [D] to two digits; dimensions: D names."""
    # + 0.0 turns -0.0 into 0.
    numbers = (f"{value + 0.0:.2g}" for value in w.tolist())
    return ",".join(f"{name}={n}" for name, n in zip(dimensions, numbers, strict=True))


def weights_and_intervals(v: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor, float]:
    """(w [D], intervals [D, 2], scale) of log-odds v [D] and their standard deviations [D]."""
    half = _NORMAL_95 * deviation
    scale = float(v.abs().max())
    if scale < _NOTHING:
        v, scale = torch.zeros_like(v), 0.0
    unit = scale or float(half.max()) or 1.0
    return v / unit, torch.stack((v - half, v + half), dim=-1) / unit, scale
