"""What is declined in a step: every row is counted, and the log stays readable."""

from __future__ import annotations

import pytest

from pad_vllm.engines import failure_log
from pad_vllm.engines.failure_log import FailureLog


@pytest.fixture
def logged():
    return []


@pytest.fixture
def kept(logged, clock):
    return FailureLog(logged.append, clock)


def test_every_row_is_counted_by_its_reason(kept):
    kept.add("late actor", 3, "actor 0 is late")
    kept.add("late actor", 2, "actor 1 is late")
    kept.add("no room", 1, "too long")
    assert kept.counts == {"late actor": 5, "no room": 1}
    assert kept.counts["misaligned"] == 0
    assert kept.rows == 6


def test_what_leaves_no_row_unguided_in_this_step_is_no_row(kept):
    kept.add("bad request", 1, "pad_weights is 7")
    kept.add("late start", 1, "no actor")
    assert kept.rows == 0


def test_nothing_is_neither_counted_nor_logged(kept, logged):
    kept.add("late actor", 0, "actor 0 is late")
    assert (dict(kept.counts), logged) == ({}, [])


def test_the_first_of_every_reason_is_logged_at_once(kept, logged):
    kept.add("late actor", 1, "actor 0 is late")
    kept.add("no room", 1, "too long")
    assert ["late actor" in logged[0], "too long" in logged[1]] == [True, True]


def test_later_ones_are_logged_every_ten_seconds_with_all_counts(kept, logged, clock):
    kept.add("no room", 1, "too long")
    for _ in range(1000):
        clock.now += 0.1
        kept.add("late actor", 2, "actor 0 is late")
    assert 9 <= len(logged) <= 13
    assert "1 no room" in logged[-1]
    assert "late actor" in logged[-1]
    assert kept.counts["late actor"] == 2000


def fail():
    raise RuntimeError("out of memory")


def test_an_errors_traceback_is_logged_once(kept, logged, clock):
    for _ in range(100):
        clock.now += 1.0
        try:
            fail()
        except RuntimeError as error:
            kept.add("engine failed", 1, "the reward engine failed", error)
    assert ["Traceback" in line for line in logged] == [True] + [False] * (len(logged) - 1)
    assert all("RuntimeError: out of memory" in line for line in logged)


def test_loader_and_processor_of_an_instance_count_into_one():
    first, second, other = (
        failure_log.failure_log_of(name, print) for name in ("one", "one", "other")
    )
    assert first is second
    assert first is not other
