"""Counts of guided rows, changed tokens, reward time and failures, for vllm_api/prometheus_metrics.py.

In: the guided rows of every step. Out: GuidanceCounts, increments since the last report. Counts that need
the device stay on it until they are reported. Imports no vLLM.
"""

from __future__ import annotations

from collections import Counter, deque
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.guidance_outcome import GuidanceCounts
from pad_vllm.serving.worker import device_buffers
from pad_vllm.serving.worker.outcome_table import OutcomeTable
from pad_vllm.serving.worker.pending_steps import PendingSteps

_MAX_STEP_TIMES = 10_000  # stored between two reports; older ones are dropped


class StepCounters:
    """The counters of one vLLM instance."""

    def __init__(
        self, device: torch.device, failure_log: FailureLog, outcome_table: OutcomeTable
    ) -> None:
        """Start all counters at zero.

        Args:
            device: where the logits are.
            failure_log: failures by reason, which a report includes.
            outcome_table: counts the rows that stayed unguided for whatever reason.
        """
        self._failure_log, self._outcome_table = failure_log, outcome_table
        self._device = device
        self._pending = PendingSteps()  # unguided, changed: [G] bool each
        self._seconds: deque[float] = deque(maxlen=_MAX_STEP_TIMES)
        self._reported_failures: Counter[Any] = Counter()

    @cached_property
    def _rows(self) -> Tensor:
        """[2] int64, guided and changed."""
        return device_buffers.zeros(2, dtype=torch.int64, device=self._device)

    def count_step(self, unguided: Tensor, changed: Tensor, seconds: float) -> None:
        """Count one step. Does not wait for the device.

        Args:
            unguided: [G] bool, rows that were not guided.
            changed: [G] bool, rows whose most likely token guidance changed.
            seconds: host time that the engine took for the rewards.
        """
        self._seconds.append(seconds)
        if self._pending.add(unguided, changed):
            self._count_pending()

    def _count_pending(self) -> None:
        if (pending := self._pending.take()) is not None:
            unguided, changed = pending
            self._rows += torch.stack([~unguided, changed]).sum(1)

    def count_not_finite_rows(self) -> None:
        """Log the rows that stayed unguided although nothing failed: their rewards were NaN or inf.

        Waits for the device, which alone knows them.
        """
        unexplained = self._outcome_table.total_unguided_rows() - self._failure_log.unguided_rows
        message = "rows with a NaN or inf reward stay unguided"
        self._failure_log.add("not finite", max(unexplained, 0), message)

    def take_counts(self) -> GuidanceCounts:
        """The counts since the last call. Waits for the device."""
        self.count_not_finite_rows()
        self._count_pending()
        failures = self._failure_log.counts - self._reported_failures
        rows, changed = self._rows.tolist()
        counts: GuidanceCounts = {
            "rows": rows,
            "changed": changed,
            "seconds": list(self._seconds),
            "failures": {str(reason): count for reason, count in failures.items()},
        }
        self._reported_failures += failures
        self._rows.zero_()
        self._seconds.clear()
        return counts
