"""The counts that the worker reports: increments, each reported once."""

from __future__ import annotations

import torch

from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.serving.worker import pending_steps, step_counters
from pad_vllm.serving.worker.outcome_table import OutcomeTable

CPU = torch.device("cpu")


def test_every_step_is_reported_once(monkeypatch):
    monkeypatch.setattr(step_counters, "_MAX_STEP_TIMES", 2)
    monkeypatch.setattr(pending_steps, "_MAX_STEPS", 2)
    failure_log = FailureLog(lambda _: None)
    counters = step_counters.StepCounters(CPU, failure_log, OutcomeTable(CPU, 2))
    failure_log.add("no room", 3, "no room")
    for seconds in (1.0, 2.0, 3.0):
        counters.count_step(
            torch.tensor([False, False, True]), torch.tensor([True, False, False]), seconds
        )
    assert counters.take_counts() == {
        "rows": 6,
        "changed": 3,
        "seconds": [2.0, 3.0],
        "failures": {"no room": 3},
    }
    failure_log.add("no room", 1, "no room")
    failure_log.add("late actor", 2, "late")
    reported = counters.take_counts()
    assert (reported["rows"], reported["changed"], reported["seconds"]) == (0, 0, [])
    assert reported["failures"] == {"no room": 1, "late actor": 2}
