"""Failures of a step: every row is counted, and the log stays readable."""

from __future__ import annotations

import pytest

from pad_vllm.engines.failure_log import FailureLog


@pytest.fixture
def logged():
    return []


@pytest.fixture
def failures(logged, clock):
    return FailureLog(logged.append, clock)


def test_every_row_is_counted_by_its_reason(failures):
    failures.add("late actor", 3, "actor 0 is late")
    failures.add("late actor", 2, "actor 1 is late")
    failures.add("no room", 1, "too long")
    assert failures.counts == {"late actor": 5, "no room": 1}
    assert failures.counts["misaligned"] == 0
    assert failures.unguided_rows == 6


def test_a_failure_that_leaves_no_row_unguided_counts_no_row(failures):
    failures.add("bad request", 1, "pad_weights is 7")
    failures.add("late start", 1, "no actor")
    assert failures.unguided_rows == 0


def test_no_rows_are_neither_counted_nor_logged(failures, logged):
    failures.add("late actor", 0, "actor 0 is late")
    assert (dict(failures.counts), logged) == ({}, [])


def test_the_first_of_every_reason_is_logged_at_once(failures, logged):
    failures.add("late actor", 1, "actor 0 is late")
    failures.add("no room", 1, "too long")
    assert ["late actor" in logged[0], "too long" in logged[1]] == [True, True]


def test_later_ones_are_logged_every_ten_seconds_with_all_counts(failures, logged, clock):
    failures.add("no room", 1, "too long")
    for _ in range(1000):
        clock.now += 0.1
        failures.add("late actor", 2, "actor 0 is late")
    assert 9 <= len(logged) <= 13
    assert "1 no room" in logged[-1]
    assert "late actor" in logged[-1]
    assert failures.counts["late actor"] == 2000


def fail():
    raise RuntimeError("out of memory")


def test_an_errors_traceback_is_logged_once(failures, logged, clock):
    for _ in range(100):
        clock.now += 1.0
        try:
            fail()
        except RuntimeError as error:
            failures.add("engine failed", 1, "the reward engine failed", error)
    assert ["Traceback" in line for line in logged] == [True] + [False] * (len(logged) - 1)
    assert all("RuntimeError: out of memory" in line for line in logged)
