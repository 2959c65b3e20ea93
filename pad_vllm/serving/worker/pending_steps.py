"""Tensors of the last steps that wait to be counted together.

In: a few tensors a step, on the device. Out: each of them concatenated over steps. On a GPU each small
operation costs host time in the step that launches it, so counting 64 steps at once is cheaper. Imports no
vLLM.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_STEPS = 64  # counted together


class PendingSteps:
    """Steps that are not counted yet: two tensors [G] each, where G may differ between steps."""

    def __init__(self) -> None:
        self._steps: list[tuple[Tensor, Tensor]] = []

    def add(self, first: Tensor, second: Tensor) -> bool:
        """Store a step, first and second [G]. Returns whether it is time to count: 64 steps are stored."""
        self._steps.append((first, second))
        return len(self._steps) == _MAX_STEPS

    def take(self) -> tuple[Tensor, Tensor] | None:
        """Remove all steps: the first tensors and the second ones, each concatenated. None without steps."""
        if not self._steps:
            return None
        first, second = map(torch.cat, zip(*self._steps, strict=True))
        self._steps.clear()
        return first, second
