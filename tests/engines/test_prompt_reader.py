"""Prompts for the reward model are translated in another thread, and no step waits long for them."""

from __future__ import annotations

import threading
import time

import pytest

from pad_vllm.engines.prompt_reader import PromptReader


class GatedAligner:
    """Does not finish a prompt before its length is let through, and fails on prompts that hold 66."""

    def __init__(self):
        self.begun, self._gates = [], {}

    def gate(self, length):
        return self._gates.setdefault(length, threading.Event())

    def start(self, prompt, preference=""):
        self.begun.append((len(prompt), preference))
        assert self.gate(len(prompt)).wait(10)
        if 66 in prompt:
            raise ValueError("cannot be read")
        return list(prompt)


@pytest.fixture
def aligner():
    return GatedAligner()


@pytest.fixture
def reader(aligner):
    return PromptReader(aligner, 0.05)


def seconds_of(call, *args):
    begun = time.monotonic()
    call(*args)
    return time.monotonic() - begun


def test_the_shortest_prompt_is_next(reader, aligner):
    futures = [reader.submit([0] * length, str(length)) for length in (5, 9, 2, 7)]
    for length in (5, 9, 2, 7):
        aligner.gate(length).set()
    assert [len(future.result(10)) for future in futures] == [5, 9, 2, 7]
    # The first may have begun before the others came.
    assert aligner.begun in [
        [(5, "5"), (2, "2"), (7, "7"), (9, "9")],
        [(2, "2"), (5, "5"), (7, "7"), (9, "9")],
    ]


def test_an_error_or_a_cancelled_prompt_concerns_no_other(reader, aligner):
    first = reader.submit([0], "")
    gone, broken, sound = (
        reader.submit([0] * 2, ""),
        reader.submit([66] * 3, ""),
        reader.submit([0] * 4, ""),
    )
    assert gone.cancel()
    for length in (1, 2, 3, 4):
        aligner.gate(length).set()
    assert (first.result(10), sound.result(10)) == ([0], [0] * 4)
    with pytest.raises(ValueError, match="cannot be read"):
        broken.result(10)
    assert [length for length, _ in aligner.begun] == [1, 3, 4]


def test_a_step_waits_for_prompts_until_they_are_there_and_no_longer_than_it_may(reader, aligner):
    assert seconds_of(reader.wait_for, []) < 0.05
    ready = reader.submit([0], "")
    aligner.gate(1).set()
    patient = PromptReader(aligner, 30.0)
    assert seconds_of(patient.wait_for, [ready]) < 10
    assert ready.done()
    assert seconds_of(reader.wait_for, [reader.submit([0] * 2, "")]) >= 0.05


def test_no_step_waits_while_a_prompt_is_late(reader, aligner):
    late = reader.submit([0], "")
    reader.wait_for([late])
    with_long_wait = PromptReader.wait_for.__get__(reader)
    reader._longest_wait_s = 30.0
    assert seconds_of(with_long_wait, [late]) < 10
    assert seconds_of(with_long_wait, [late, reader.submit([0] * 2, "")]) < 10
    aligner.gate(1).set()
    late.result(10)
    other = reader.submit([0] * 3, "")
    threading.Timer(0.1, lambda: [aligner.gate(2).set(), aligner.gate(3).set()]).start()
    reader.wait_for([other])
    assert other.done(), "the thread keeps up again, and is waited for"
