"""Stacked heads: inserted ones reward as they do alone, and removed ones reward nothing."""

from __future__ import annotations

import pytest
import torch

from pad_vllm import guidance
from pad_vllm.engines.shared import adapter_heads
from pad_vllm.engines.shared.lm_head_rows import LmHeadRows
from pad_vllm.engines.shared.shared_rewards import SharedRewards
from pad_vllm.guidance import HeadTensors

H = 8


def random_heads(count, rank, constants=False, gates=False):
    return HeadTensors(
        torch.randn(count, rank, H),
        torch.randn(count, H, rank),
        torch.randn(count, H) if constants else None,
        torch.randn(count, rank, H) if gates else None,
    )


def directions(heads, w):
    """d_w of three states."""
    torch.manual_seed(3)
    h = torch.randn(3, H)
    return guidance.reward_direction(h, h, torch.tensor(w).expand(3, -1), *heads)


@pytest.mark.parametrize("offset", [2, 4])
@pytest.mark.parametrize("constants", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("gates", [(False, False), (True, False), (False, True), (True, True)])
def test_each_rewards_as_it_does_alone(offset, constants, gates):
    first, second = (
        random_heads(2, rank, *parts) for rank, *parts in zip((3, 5), constants, gates, strict=True)
    )
    both = adapter_heads.insert_heads(first, offset, second)
    torch.testing.assert_close(
        directions(both, [1.0, -2.0] + [0.0] * offset), directions(first, [1.0, -2.0])
    )
    far = [0.0] * offset + [0.5, 1.0]
    torch.testing.assert_close(directions(both, far), directions(second, [0.5, 1.0]))


def test_inserted_heads_replace_the_old_ones_completely():
    both = adapter_heads.insert_heads(random_heads(2, 3), 2, random_heads(2, 5, True, True))
    third = random_heads(1, 2)
    after = adapter_heads.insert_heads(both, 3, third)
    torch.testing.assert_close(directions(after, [0.0, 0.0, 0.0, 1.0]), directions(third, [1.0]))


def test_removed_heads_reward_nothing_and_the_unused_end_is_cut_off():
    first = random_heads(2, 3)
    three = adapter_heads.insert_heads(
        adapter_heads.insert_heads(first, 2, random_heads(1, 3)), 3, random_heads(1, 4)
    )
    between = adapter_heads.remove_heads(three, 2, 1, num_used=4)
    assert not directions(between, [0.0, 0.0, 1.0, 0.0]).any()
    assert len(adapter_heads.remove_heads(between, 3, 1, num_used=2)[0]) == 2
    torch.testing.assert_close(directions(between, [1.0, 0, 0, 0]), directions(first, [1.0, 0]))


def test_once_the_last_gated_heads_are_gone_no_step_computes_gates():
    first = random_heads(2, 3)
    both = adapter_heads.insert_heads(first, 2, random_heads(1, 3, gates=True))
    three = adapter_heads.insert_heads(both, 3, random_heads(1, 3, gates=True))
    assert adapter_heads.remove_heads(three, 3, 1, num_used=3).G is not None
    after = adapter_heads.remove_heads(both, 2, 1, num_used=2)
    assert after.G is None
    torch.testing.assert_close(directions(after, [1.0, 2.0]), directions(first, [1.0, 2.0]))


def test_an_engine_changes_heads_between_steps_and_reports_them():
    from pad_vllm.engines.reward_engine import StepCandidates

    first, second, reported = random_heads(2, 3), random_heads(1, 4), []
    engine = SharedRewards(first, LmHeadRows(torch.randn(30, H)), reported.append)
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
    assert [len(heads.A) for heads in reported] == [2, 3, 2]
