"""How long a step waits for an actor, and when one that was late is called again."""

from __future__ import annotations

import pytest

from pad_vllm.engines.actor_timeout import ActorTimeout


@pytest.fixture
def timeout(clock):
    return ActorTimeout(2.0, clock)


def test_it_waits_the_deadline_until_it_knows_better(timeout):
    assert timeout.wait_seconds == 2.0


@pytest.mark.parametrize(
    ("took", "waits"), [((0.01, 0.2, 0.01), 0.8), ((0.001,), 0.5), ((1.9, 0.01), 2.0)]
)
def test_it_waits_a_multiple_of_the_slowest_answer_between_a_quarter_and_all_of_the_deadline(
    timeout, took, waits
):
    for seconds in took:
        timeout.record_answer(seconds)
    assert timeout.wait_seconds == pytest.approx(waits)


def test_a_slow_answer_is_forgotten_in_time(timeout):
    timeout.record_answer(1.0)
    for _ in range(1000):
        timeout.record_answer(0.2)
    assert timeout.wait_seconds == pytest.approx(0.8)


def test_after_a_lost_answer_the_next_has_the_whole_deadline(timeout):
    timeout.record_answer(0.1)
    timeout.record_failure()
    assert timeout.wait_seconds == 2.0


def test_the_pause_doubles_from_the_deadline_up_to_a_hundred_of_them(timeout, clock):
    pauses = []
    for _ in range(10):
        timeout.record_failure()
        begin = clock.now
        while timeout.paused:
            clock.now += 1.0
        pauses.append(clock.now - begin)
    assert pauses == [0, 2, 4, 8, 16, 32, 64, 128, 200, 200]


def test_an_answer_in_time_ends_the_pauses(timeout, clock):
    for _ in range(5):
        timeout.record_failure()
    clock.now += 1000
    timeout.record_answer(0.1)
    timeout.record_failure()
    assert not timeout.paused
