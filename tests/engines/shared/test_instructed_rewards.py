"""Rewards of a model that reads instructions: <e, h_T - h_B> of a row that has one, and heads of h_B."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pad_vllm import guidance
from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.engines.reward_engine import GuidedRequest, StepCandidates
from pad_vllm.engines.shared.instruction_stream import InstructionLimits, InstructionStream
from pad_vllm.engines.shared.lm_head_rows import LmHeadRows
from pad_vllm.engines.shared.shared_rewards import SharedRewards
from pad_vllm.guidance import HeadTensors
from pad_vllm.instruction import InstructionTokens
from pad_vllm.params import Guidance

H, V, R, K = 8, 30, 5, 4
ROWS = torch.tensor([0, 2, 4])


@pytest.fixture
def stream():
    return InstructionStream(
        InstructionLimits(1, 8),
        SimpleNamespace(block_size=4),
        FailureLog(print),
        lambda tokens, blocks: None,
    )


@pytest.fixture
def states():
    torch.manual_seed(0)
    return torch.randn(R, H), torch.randn(R, H)


def heads(dimensions, rank=2, gates=False):
    torch.manual_seed(1)
    A, B = torch.randn(dimensions, rank, H), torch.randn(dimensions, H, rank)
    return HeadTensors(A, B, G=torch.randn(dimensions, rank, H) if gates else None)


def make(stream, dimensions, gates=False):
    torch.manual_seed(2)
    e = torch.randn(V, H)
    return SharedRewards(heads(dimensions, gates=gates), LmHeadRows(e), instructions=stream), e


def rewards(engine, states, w, weight):
    engine.store_states(*states)
    weight = None if weight is None else torch.tensor(weight)
    ids = torch.arange(3 * K).view(3, K)
    step = StepCandidates(R, ROWS, ids, torch.tensor(w), (), instruction_weight=weight)
    return engine.rewards(step), ids


def test_without_heads_it_is_what_the_instruction_changes(stream, states):
    engine, e = make(stream, 0)
    found, ids = rewards(engine, states, [[], [], []], [1.0, 1.0, 1.0])
    h_B, h_T = states
    expected = torch.einsum("gkh,gh->gk", e[ids], (h_T - h_B)[ROWS])
    torch.testing.assert_close(found, expected)


def test_without_heads_and_without_an_instruction_it_is_nothing(stream, states):
    engine, _ = make(stream, 0)
    for weight in (None, [0.0, 0.0, 0.0]):
        found, _ = rewards(engine, states, [[], [], []], weight)
        assert found.shape == (3, K)
        assert not found.any()


@pytest.mark.parametrize("gates", [False, True])
def test_heads_and_gates_read_the_state_that_knows_no_instruction(stream, states, gates):
    engine, e = make(stream, 2, gates)
    w = [[1.0, -0.5], [0.0, 2.0], [0.3, 0.3]]
    h_B = states[0][ROWS]
    direction = guidance.reward_direction(h_B, h_B, torch.tensor(w), *heads(2, gates=gates))
    for weight in (None, [0.0, 0.0, 0.0]):
        found, ids = rewards(engine, states, w, weight)
        torch.testing.assert_close(found, guidance.rewards(direction, e[ids]))


def test_heads_and_instructions_stand_side_by_side_in_one_batch(stream, states):
    engine, e = make(stream, 2)
    w = [[1.0, -0.5], [0.0, 0.0], [0.3, 0.3]]
    weight = [1.0, 1.0, 0.0]
    found, ids = rewards(engine, states, w, weight)
    h_B, h_T = (state[ROWS] for state in states)
    by_heads = guidance.reward_direction(h_B, h_B, torch.tensor(w), *heads(2))
    told = torch.tensor(weight)[:, None] * (h_T - h_B)
    torch.testing.assert_close(found, guidance.rewards(by_heads + told, e[ids]))
    # Weights of the heads do not multiply what the instruction does.
    torch.testing.assert_close(found[1], guidance.rewards((h_T - h_B)[1], e[ids[1]]))


def test_a_row_whose_instruction_was_not_read_has_no_reward_and_its_neighbours_have(stream, states):
    engine, _ = make(stream, 2)
    w = [[1.0, 0.0]] * 3
    found, _ = rewards(engine, states, w, [1.0, float("nan"), 0.0])
    assert found.isnan().tolist() == [[False] * K, [True] * K, [False] * K]
    alone, _ = rewards(engine, states, w, [1.0, 1.0, 0.0])
    assert torch.equal(found[[0, 2]], alone[[0, 2]])


def test_the_states_may_be_bfloat16(stream, states):
    engine, e = make(stream, 0)
    low = tuple(state.bfloat16() for state in states)
    found, ids = rewards(engine, low, [[], [], []], [1.0, 1.0, 1.0])
    assert found.dtype == torch.float32
    change = (low[1].float() - low[0].float())[ROWS]
    torch.testing.assert_close(found, guidance.rewards(change, e[ids]))


def test_the_engine_tells_the_stream_who_joins_and_leaves(stream):
    engine, _ = make(stream, 0)
    first, second = (
        GuidedRequest(Guidance((), 1.0, 10, instruction=InstructionTokens((), (token,))), [], 0)
        for token in (1, 2)
    )
    batch = {3: first}
    engine.follow_batch(batch)
    assert stream.batch is batch
    engine.on_request_assigned(first)
    assert first.instruction_weight == 1.0
    engine.on_slot_freed(3)
    engine.on_request_assigned(second)  # there is one slot
    assert second.instruction_weight == 1.0
    engine.on_request_left(second)
    third = GuidedRequest(Guidance((), 1.0, 10, instruction=InstructionTokens((), (3,))), [], 0)
    engine.on_request_assigned(third)
    assert third.instruction_weight == 1.0
    engine.on_request_left(third)
    engine.on_weights_changed()
    assert stream._num_weight_changes == 1


def test_without_instructions_the_same_calls_do_nothing(states):
    engine, _ = make(None, 1)
    request = GuidedRequest(
        Guidance((1.0,), 1.0, 10, instruction=InstructionTokens((), (1,))), [], 0
    )
    engine.follow_batch({0: request})
    engine.on_request_assigned(request)
    engine.on_slot_freed(0)
    engine.on_request_left(request)
    engine.on_weights_changed()
    assert (request.instruction_blocks, request.instruction_weight) == ((), 0.0)
