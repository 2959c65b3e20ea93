"""What guidance did in the steps since it was last asked: what an operator reads in /metrics.

In: the guided rows of every step. Out: Figures, increments. Counts that need the device stay on it until
they are asked for. Imports no vLLM.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import torch
from torch import Tensor

from pad_vllm.engines.declined import Declined
from pad_vllm.outcome import Figures

_SECONDS = 10_000  # steps whose times are kept for who asks seldom


class Tally:
    """Of one engine."""

    def __init__(self, device: torch.device, declined: Declined) -> None:
        self._declined = declined
        self._rows = 0
        self._changed = torch.zeros((), dtype=torch.int64, device=device)
        self._seconds: deque[float] = deque(maxlen=_SECONDS)
        self._told: Counter[Any] = Counter()  # of what was declined

    def step(self, changed: Tensor, seconds: float) -> None:
        """changed: [G] bool, whose likeliest token guidance changed; seconds: the host spent on rewards."""
        self._rows += len(changed)
        self._changed += changed.sum()
        self._seconds.append(seconds)

    def take(self) -> Figures:
        """Since the last call."""
        declined = self._declined.counts - self._told
        figures: Figures = {
            "rows": self._rows,
            "changed": int(self._changed),
            "seconds": list(self._seconds),
            "declined": {str(reason): count for reason, count in declined.items()},
        }
        self._told += declined
        self._rows = 0
        self._changed.zero_()
        self._seconds.clear()
        return figures
