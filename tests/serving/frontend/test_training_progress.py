"""The bar of a job: what lines of a training do to it."""

from __future__ import annotations

import pytest

from pad_vllm.serving.frontend import training_progress
from pad_vllm.serving.frontend.training_progress import LOADING, MERGING, TrainingProgress

LINES = [
    "answers: 48 to draw, of at most 60 tokens",
    "fork activations: 0 of 69",
    "fork activations: 32 of 69, about 0.4 minutes left",
    "fork activations: 64 of 69, about 0.0 minutes left",
    "the teacher's rewards: 0 of 19",
    "the teacher's rewards: 16 of 19, about 0.0 minutes left",
    "the teacher's rewards: 0 of 50",
    "the teacher's rewards: 48 of 50, about 0.0 minutes left",
    "stage 1 step 12: validation shares pirate 26.2%",
]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that have passed."""
    now = [0.0]
    monkeypatch.setattr(training_progress.time, "monotonic", lambda: now[0])
    return now


def test_the_bar_only_rises_from_the_first_line_to_the_last(clock):
    progress, shares = TrainingProgress(), []
    for line in LINES:
        progress.read(line)
        shares.append(progress.share())
        clock[0] += 5
        shares.append(progress.share())
    for stage in (MERGING, LOADING):
        progress.enter(stage)
        shares.append(progress.share())

    assert shares == sorted(shares)
    assert shares[0] > 0
    assert 0.95 < shares[-1] < 1


def test_between_two_lines_the_bar_goes_on_and_never_reaches_the_next_point(clock):
    progress = TrainingProgress()
    progress.read(LINES[0])
    before = progress.share()
    clock[0] = 30
    middle = progress.share()
    clock[0] = 1e6

    assert before < middle < progress.share() <= 0.45


def test_lines_of_another_program_change_nothing(clock):
    progress = TrainingProgress()
    progress.read("WARNING 11-29 23:56:54 [cpu_worker.py:140] of 3 answers")

    assert progress.share() == 0
    assert progress.message == "training starts"
