"""Heads side by side: what is put at a place pays as it does alone, and what is dropped pays nothing."""

from __future__ import annotations

import pytest
import torch

from pad_vllm import guidance
from pad_vllm.engines.shared import adapter_heads
from pad_vllm.engines.shared.lm_head_rows import LmHeadRows
from pad_vllm.engines.shared.shared_rewards import SharedRewards

H = 8


def made(count, rank, constants=False):
    c = torch.randn(count, H) if constants else None
    return torch.randn(count, rank, H), torch.randn(count, H, rank), c


def paid(of, w):
    """R_w's directions for three states."""
    torch.manual_seed(3)
    h = torch.randn(3, H)
    return guidance.reward_direction(h, h, torch.tensor(w).expand(3, -1), *of)


@pytest.mark.parametrize("place", [2, 4])
@pytest.mark.parametrize("constants", [(False, False), (True, False), (False, True)])
def test_each_pays_as_it_does_alone(place, constants):
    first, second = made(2, 3, constants[0]), made(2, 5, constants[1])
    both = adapter_heads.insert_heads(first, place, second)
    torch.testing.assert_close(paid(both, [1.0, -2.0] + [0.0] * place), paid(first, [1.0, -2.0]))
    far = [0.0] * place + [0.5, 1.0]
    torch.testing.assert_close(paid(both, far), paid(second, [0.5, 1.0]))


def test_a_place_is_taken_over_whole():
    both = adapter_heads.insert_heads(made(2, 3), 2, made(2, 5, True))
    third = made(1, 2)
    after = adapter_heads.insert_heads(both, 3, third)
    torch.testing.assert_close(paid(after, [0.0, 0.0, 0.0, 1.0]), paid(third, [1.0]))


def test_what_is_dropped_pays_nothing_and_the_end_is_cut_off():
    first = made(2, 3)
    three = adapter_heads.insert_heads(
        adapter_heads.insert_heads(first, 2, made(1, 3)), 3, made(1, 4)
    )
    between = adapter_heads.remove_heads(three, 2, 1, num_used=4)
    assert not paid(between, [0.0, 0.0, 1.0, 0.0]).any()
    assert len(adapter_heads.remove_heads(between, 3, 1, num_used=2)[0]) == 2
    torch.testing.assert_close(paid(between, [1.0, 0, 0, 0]), paid(first, [1.0, 0]))


def test_an_engine_takes_them_between_steps_and_says_so():
    from pad_vllm.engines.reward_engine import StepCandidates

    first, second, owned = made(2, 3), made(1, 4), []
    engine = SharedRewards(first[0], first[1], LmHeadRows(torch.randn(30, H)), None, owned.append)
    ids, rows = torch.arange(5).expand(1, 5), torch.zeros(1, dtype=torch.int64)
    state = torch.randn(1, H)

    def rewards(*w):
        engine.store_states(state, state)
        return engine.rewards(StepCandidates(1, rows, ids, torch.tensor([w]), ()))

    before = rewards(1.0, 0.5)
    engine.insert_heads(2, second)
    torch.testing.assert_close(rewards(1.0, 0.5), before)
    assert rewards(0.0, 0.0, 1.0).abs().sum() > 0
    engine.remove_heads(2, 1, 2)
    torch.testing.assert_close(rewards(1.0, 0.5), before)
    assert [len(A) for A, _, _ in owned] == [2, 3, 2]
