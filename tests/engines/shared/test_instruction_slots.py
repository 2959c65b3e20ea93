"""Slots of instructions: the least recently used one goes, those in use stay."""

from __future__ import annotations

import random

import pytest

from pad_vllm.engines.shared.instruction_slots import InstructionSlots


def key(token, changes=0):
    return changes, (token,)


def use(slots, *tokens):
    """Each is acquired and released; whether it was new."""
    new = []
    for token in tokens:
        new.append(slots.acquire(key(token))[1])
        slots.release(key(token))
    return new


def test_each_has_a_slot_of_its_own_and_is_new_once():
    slots = InstructionSlots(3)
    assert [slots.acquire(key(token)) for token in (5, 6, 5, 7, 6)] == [
        (0, True),
        (1, True),
        (0, False),
        (2, True),
        (1, False),
    ]


def test_a_released_one_keeps_its_slot_until_another_needs_it():
    slots = InstructionSlots(2)
    assert use(slots, 1, 2, 1, 2) == [True, True, False, False]
    assert use(slots, 3) == [True]


def test_the_least_recently_used_one_goes():
    slots = InstructionSlots(3)
    use(slots, 1, 2, 3, 1)
    assert slots.acquire(key(4)) == (1, True)  # that of 2
    assert use(slots, 3, 1, 2) == [False, False, True]


def test_one_that_is_in_use_stays_however_long_ago_it_came():
    slots = InstructionSlots(2)
    slots.acquire(key(1))
    assert use(slots, 2, 3, 4) == [True] * 3
    assert slots.acquire(key(1)) == (0, False)


def test_it_is_in_use_until_the_last_that_acquired_it_has_released_it():
    slots = InstructionSlots(1)
    slots.acquire(key(1))
    slots.acquire(key(1))
    slots.release(key(1))
    assert slots.acquire(key(2)) is None
    slots.release(key(1))
    assert slots.acquire(key(2)) == (0, True)


def test_where_all_are_in_use_there_is_none_and_nothing_changes():
    slots = InstructionSlots(2)
    slots.acquire(key(1))
    slots.acquire(key(2))
    assert slots.acquire(key(3)) is None
    assert slots.acquire(key(3)) is None
    assert slots.acquire(key(1)) == (0, False)
    slots.release(key(2))
    assert slots.acquire(key(3)) == (1, True)


def test_a_discarded_one_is_new_again_and_its_slot_is_the_next_to_be_taken():
    slots = InstructionSlots(2)
    slots.acquire(key(1))
    slots.acquire(key(2))
    slots.discard(key(1))
    assert slots.acquire(key(3)) == (0, True)
    assert slots.acquire(key(1)) is None


def test_one_that_was_read_with_older_weights_is_another():
    slots = InstructionSlots(2)
    assert slots.acquire(key(1)) == (0, True)
    assert slots.acquire(key(1, changes=1)) == (1, True)


@pytest.mark.parametrize("seed", range(5))
def test_no_two_in_use_share_a_slot_whatever_comes(seed):
    drawn, slots, in_use = random.Random(seed), InstructionSlots(4), []
    for _ in range(500):
        if in_use and drawn.random() < 0.5:
            slots.release(key(in_use.pop(drawn.randrange(len(in_use)))[0]))
            continue
        token = drawn.randrange(8)
        acquired = slots.acquire(key(token))
        if acquired is None:
            assert len({slot for _, slot in in_use}) == 4
            assert token not in [other for other, _ in in_use]
            continue
        assert 0 <= acquired[0] < 4
        in_use.append((token, acquired[0]))
        assert len(set(in_use)) == len({slot for _, slot in in_use})
