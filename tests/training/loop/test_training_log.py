"""Lines of progress say how long the rest will take, from the speed so far."""

from __future__ import annotations

import io
from types import SimpleNamespace

from rich.console import Console

from pad_vllm.training.loop import training_log
from pad_vllm.training.loop.training_log import TrainingLog


def test_the_time_left_is_by_the_speed_since_the_first_call(tmp_path, monkeypatch):
    now = iter([100.0, 130.0, 160.0])
    monkeypatch.setattr(training_log.time, "monotonic", lambda: next(now))
    said = io.StringIO()
    log = TrainingLog(tmp_path, Console(file=said))
    for done in (20, 30, 40):  # 20 were there before this run: half a minute for each ten
        log.progress("teacher", done, 100)
    assert said.getvalue().splitlines() == [
        "teacher: 20 of 100",
        "teacher: 30 of 100, about 3.5 minutes left",
        "teacher: 40 of 100, about 3.0 minutes left",
    ]


def test_less_than_a_minute_is_said_in_seconds(tmp_path, monkeypatch):
    now = iter([100.0, 103.0])
    monkeypatch.setattr(training_log.time, "monotonic", lambda: next(now))
    said = io.StringIO()
    log = TrainingLog(tmp_path, Console(file=said))
    for done in (0, 5):
        log.progress("teacher", done, 20)
    assert said.getvalue().splitlines()[-1] == "teacher: 5 of 20, about 9 seconds left"


def test_a_stage_says_after_its_first_step_how_long_it_will_take(tmp_path, monkeypatch):
    now = iter([100.0, 130.0, 160.0])
    monkeypatch.setattr(training_log.time, "monotonic", lambda: next(now))
    said = io.StringIO()
    log = TrainingLog(tmp_path, Console(file=said))
    monkeypatch.setattr(log, "_event_writer", lambda stage, step: SimpleNamespace(add_scalar=print))
    for step in (0, 1, 2):
        log.write_history_row({"stage": 1, "step": step, **({"loss": 2.0} if step else {})}, 9)
    assert said.getvalue().splitlines() == [
        "stage 1 step 1 of 9: loss 2.0000, about 4.0 minutes left",
    ]
