"""The instructions of a served model: read once, in whose rows, and what happens where one cannot be read."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pad_vllm.adapter.learned_prefix import LearnedPrefix
from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.engines.reward_engine import GuidedRequest
from pad_vllm.engines.shared.instruction_stream import InstructionLimits, InstructionStream
from pad_vllm.instruction import InstructionTokens, LearnedInstruction
from pad_vllm.params import Guidance

BLOCK = 4


class Stream(InstructionStream):
    """One whose readings are noted, and fail while `broken` is set."""

    def __init__(self, max_instructions=3, max_tokens=10, block_size=BLOCK):
        self.lines, self.readings, self.broken = [], [], False
        super().__init__(
            InstructionLimits(max_instructions, max_tokens),
            SimpleNamespace(block_size=block_size),
            FailureLog(self.lines.append),
            self.note,
        )

    def note(self, instruction, blocks):
        self.readings.append((instruction.sentence, tuple(blocks)))
        if self.broken:
            raise RuntimeError("out of memory")

    def joined(self, *tokens):
        """A request with this instruction, after it joined."""
        instruction = InstructionTokens((), tokens) if tokens else None
        guidance = Guidance((), 1.0, 10, preference="x", instruction=instruction)
        request = GuidedRequest(guidance, [], 0)
        self.join(request)
        return request

    @property
    def num_unread(self):
        return self.failure_log.counts["instruction unread"]


@pytest.mark.parametrize(
    ("max_tokens", "block_size", "blocks_each"), [(1, 16, 1), (16, 16, 1), (17, 16, 2), (64, 16, 4)]
)
def test_every_instruction_has_the_blocks_of_the_longest(max_tokens, block_size, blocks_each):
    limits = InstructionLimits(5, max_tokens)
    assert limits.blocks_each(block_size) == blocks_each
    assert limits.num_reserved_blocks(block_size) == 5 * blocks_each


def test_the_size_of_a_block_is_looked_up_when_it_is_needed():
    stream = Stream()
    stream.cache_config.block_size = 8
    assert (stream.block_size, stream.max_prefix_blocks, stream.num_reserved_blocks) == (8, 2, 6)


def test_a_request_without_an_instruction_is_left_alone():
    stream = Stream()
    request = stream.joined()
    assert (request.instruction_blocks, request.instruction_weight) == ((), 0.0)
    assert stream.readings == []
    stream.leave(request)


def test_a_new_instruction_has_all_blocks_of_its_place_to_be_read_and_keeps_what_it_fills():
    stream = Stream()
    requests = [stream.joined(1, 2, 3), stream.joined(*range(5)), stream.joined(7)]
    assert stream.readings == [((1, 2, 3), (0, 1, 2)), ((*range(5),), (3, 4, 5)), ((7,), (6, 7, 8))]
    assert [request.instruction_blocks for request in requests] == [(0, 1), (3, 4, 5), (6,)]
    assert {request.instruction_weight for request in requests} == {1.0}
    assert stream.num_reserved_blocks == 9
    assert stream.num_unread == 0


def test_it_is_read_once_however_many_requests_have_it():
    stream = Stream()
    requests = [stream.joined(1, 2, 3) for _ in range(3)]
    for request in requests:
        stream.leave(request)
    again = stream.joined(1, 2, 3)
    assert len(stream.readings) == 1
    assert {request.instruction_blocks for request in (*requests, again)} == {(0, 1)}


def test_one_that_was_replaced_is_read_again():
    stream = Stream(max_instructions=1)
    for token in (1, 2, 1):
        stream.leave(stream.joined(token))
    assert [tokens[0] for tokens, _ in stream.readings] == [1, 2, 1]
    assert {blocks for _, blocks in stream.readings} == {(0, 1, 2)}


def test_leaving_twice_is_harmless():
    stream = Stream(max_instructions=1)
    first, second = stream.joined(1), stream.joined(1)
    stream.leave(first)
    stream.leave(first)
    assert math.isnan(stream.joined(2).instruction_weight)  # the second one still has it
    stream.leave(second)
    assert stream.joined(3).instruction_weight == 1.0


def test_leaving_without_having_joined_is_harmless():
    Stream().leave(
        GuidedRequest(Guidance((), 1.0, 10, instruction=InstructionTokens((), (1,))), [], 0)
    )


def test_a_request_leaves_by_its_slot_in_the_batch():
    stream = Stream(max_instructions=1)
    batch = {}
    stream.batch = batch
    batch[4] = stream.joined(1)  # a live view
    stream.leave_slot(3)
    stream.leave_slot(4)
    assert stream.joined(2).instruction_weight == 1.0
    stream.leave(batch[4])  # where V2 takes the slot
    assert math.isnan(stream.joined(3).instruction_weight)


def test_where_no_slot_is_free_it_stays_unguided_for_good():
    stream = Stream(max_instructions=1)
    first, second = stream.joined(1), stream.joined(2)
    assert math.isnan(second.instruction_weight)
    assert second.instruction_blocks == ()
    assert stream.num_unread == 1
    stream.leave(second)
    stream.leave(first)
    assert math.isnan(stream.joined(2).instruction_weight)
    assert stream.num_unread == 2
    assert stream.joined(3).instruction_weight == 1.0
    assert len(stream.readings) == 2


def test_what_cannot_be_read_stays_unguided_for_good_and_its_slot_is_free():
    stream = Stream(max_instructions=1)
    stream.broken = True
    request = stream.joined(1)
    stream.broken = False
    assert math.isnan(request.instruction_weight)
    assert request.instruction_blocks == ()
    assert "out of memory" in stream.lines[0]
    assert "stay unguided" in stream.lines[0]
    assert math.isnan(stream.joined(1).instruction_weight)
    assert len(stream.readings) == 1
    assert stream.num_unread == 2
    stream.leave(request)
    other = stream.joined(2)
    assert (other.instruction_weight, other.instruction_blocks) == (1.0, (0,))


def test_with_new_weights_a_new_request_reads_it_again():
    stream = Stream()
    before = stream.joined(1)
    stream.on_weights_changed()
    after, another = stream.joined(1), stream.joined(1)
    assert len(stream.readings) == 2
    assert before.instruction_blocks != after.instruction_blocks == another.instruction_blocks
    for request in (before, after, another):
        stream.leave(request)
    assert stream.joined(1).instruction_blocks == after.instruction_blocks


def test_with_new_weights_what_was_unreadable_is_tried_again():
    stream = Stream()
    stream.broken = True
    stream.joined(1)
    stream.broken = False
    stream.on_weights_changed()
    assert stream.joined(1).instruction_weight == 1.0


def test_rows_read_the_blocks_of_their_requests():
    stream = Stream()
    long, short, none = stream.joined(*range(5)), stream.joined(1), stream.joined()
    stream.batch = {2: long, 5: none, 0: short}
    found = stream.prefix_blocks([0, 1, 2, 5, 2])
    assert found.dtype == np.int32
    assert found.tolist() == [
        [3, -1, -1],
        [-1, -1, -1],
        [0, 1, 2],
        [-1, -1, -1],
        [0, 1, 2],
    ]


def test_where_no_row_reads_any_there_are_none():
    stream = Stream()
    assert stream.prefix_blocks([0, 1]) is None
    stream.batch = {0: stream.joined(), 3: stream.joined(1)}
    assert stream.prefix_blocks([0, 1]) is None
    assert stream.prefix_blocks([]) is None
    stream.broken = True
    stream.batch[1] = stream.joined(2)
    assert stream.prefix_blocks([0, 1]) is None


def test_an_instruction_longer_than_its_blocks_is_not_read_into_those_of_another():
    stream = Stream(max_instructions=2, max_tokens=8)
    assert math.isnan(stream.joined(*range(9)).instruction_weight)
    assert stream.readings == []
    assert stream.num_unread == 1


def learned_prefix(num_tokens=2 * BLOCK, value=1.0):
    keys = torch.full((1, 1, num_tokens, 2), value)
    return LearnedPrefix(keys, keys)


def test_a_learned_prefix_has_its_own_blocks_and_goes_with_its_adapter():
    stream, prefix = Stream(), learned_prefix()
    found = []
    stream.read = lambda instruction, blocks: found.append(stream.learned.find(instruction.digest))
    stream.add_learned("one", [prefix])
    stream.add_learned("two", [learned_prefix(), learned_prefix(value=2.0)])
    request = GuidedRequest(
        Guidance(
            (),
            1.0,
            10,
            preference="warm",
            instruction=LearnedInstruction(prefix.digest, prefix.num_tokens),
        ),
        [],
        0,
    )
    stream.join(request)
    assert found == [prefix]
    assert request.instruction_blocks == (0, 1)
    assert request.instruction_weight == 1.0
    stream.learned.remove("one")
    assert stream.learned.find(prefix.digest).digest == prefix.digest  # the other adapter's
    stream.learned.remove("two")
    with pytest.raises(KeyError, match=prefix.digest):
        stream.learned.find(prefix.digest)


def test_one_that_does_not_fill_whole_blocks_is_refused():
    with pytest.raises(ValueError, match="has 6 tokens.*blocks of 4.*--prefix-tokens"):
        Stream().add_learned("one", [learned_prefix(6)])
