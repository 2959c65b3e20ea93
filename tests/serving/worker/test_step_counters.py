"""What the worker tells of its steps: increments, each told once."""

from __future__ import annotations

import torch

from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.serving.worker import step_counters


def test_every_step_is_told_once(monkeypatch):
    monkeypatch.setattr(step_counters, "_SECONDS", 2)
    monkeypatch.setattr(step_counters, "_AT_ONCE", 2)
    declined = FailureLog(lambda _: None)
    kept = step_counters.StepCounters(torch.device("cpu"), declined)
    declined.add("no room", 3, "no room")
    for seconds in (1.0, 2.0, 3.0):
        kept.step(torch.tensor([False, False, True]), torch.tensor([True, False, False]), seconds)
    assert kept.take() == {
        "rows": 6,
        "changed": 3,
        "seconds": [2.0, 3.0],
        "failures": {"no room": 3},
    }
    declined.add("no room", 1, "no room")
    declined.add("late actor", 2, "late")
    told = kept.take()
    assert (told["rows"], told["changed"], told["seconds"]) == (0, 0, [])
    assert told["failures"] == {"no room": 1, "late actor": 2}
