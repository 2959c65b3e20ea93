"""What guidance did in the steps since it was last asked: what an operator reads in /metrics.

In: the guided rows of every step. Out: Figures, increments. Counts that need the device stay on it until
they are asked for, some steps at a time, as in answers.py. Imports no vLLM.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.guidance_outcome import GuidanceCounts

_SECONDS = 10_000  # steps whose times are kept for who asks seldom
_AT_ONCE = 64  # steps that are counted together


class StepCounters:
    """Of one engine."""

    def __init__(
        self, device: torch.device, declined: FailureLog, settle: Callable[[], None] = lambda: None
    ) -> None:
        """settle: brings `declined` up to date, before it is told."""
        self._declined, self._settle = declined, settle
        self._rows = torch.zeros(2, dtype=torch.int64, device=device)
        self._uncounted: list[tuple[Tensor, Tensor]] = []
        self._seconds: deque[float] = deque(maxlen=_SECONDS)
        self._told: Counter[Any] = Counter()  # of what was declined

    def step(self, left: Tensor, changed: Tensor, seconds: float) -> None:
        """left, changed: [G] bool, rows that were not guided, and those whose likeliest token guidance
        changed; seconds: of the host, on rewards.
        """
        self._uncounted.append((left, changed))
        self._seconds.append(seconds)
        if len(self._uncounted) == _AT_ONCE:
            self._count()

    def _count(self) -> None:
        if self._uncounted:
            left, changed = map(torch.cat, zip(*self._uncounted, strict=True))
            self._uncounted.clear()
            self._rows += torch.stack([~left, changed]).sum(1)

    def take(self) -> GuidanceCounts:
        """Since the last call."""
        self._settle()
        self._count()
        declined = self._declined.counts - self._told
        rows, changed = self._rows.tolist()
        figures: GuidanceCounts = {
            "rows": rows,
            "changed": changed,
            "seconds": list(self._seconds),
            "failures": {str(reason): count for reason, count in declined.items()},
        }
        self._told += declined
        self._rows.zero_()
        self._seconds.clear()
        return figures
