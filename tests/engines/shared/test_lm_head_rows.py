"""Rows of lm_head on several ranks: shares that add up, and a refusal that all ranks share."""

from __future__ import annotations

import pytest
import torch
from threaded_ranks import ThreadedRanks, same_bits
from torch import nn

pytest.importorskip("vllm")

from pad_vllm import guidance
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.engines.shared import lm_head_rows
from pad_vllm.engines.shared.lm_head_rows import ForkError, LmHeadRows, plain_lm_head_rows

H, V, PADDED = 16, 50, 64
BACKBONE = Backbone("tiny", ("SomethingForCausalLM",), H, 3, V, None)


def rows(ranks):
    """lm_head's, padded, and each rank's part of them."""
    torch.manual_seed(0)
    e = torch.randn(PADDED, H)
    e[V:] = 0
    return e, e.chunk(ranks)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_the_ranks_shares_add_up_to_the_whole_with_the_same_bits_on_each(ranks):
    e, parts = rows(ranks)
    d_w, ids = torch.randn(3, H), torch.randint(V, (3, 7))
    ids[0] = torch.tensor([0, V - 1, 31, 32, 15, 16, 49])  # at every edge
    world = ThreadedRanks(ranks)

    def share(rank):
        return world.sum_over_ranks(LmHeadRows(parts[rank], rank, ranks).rewards(d_w, ids))

    sums = world.run(share)
    assert same_bits(sums)
    torch.testing.assert_close(sums[0], guidance.token_rewards(d_w, ids, e))


def test_a_nan_reward_is_nan_on_every_rank():
    _, parts = rows(2)
    d_w, ids = torch.randn(2, H), torch.tensor([[1, 40], [2, 41]])
    broken = d_w.clone()
    broken[0] = torch.nan
    world = ThreadedRanks(2)

    def share(rank):
        return world.sum_over_ranks(
            LmHeadRows(parts[rank], rank, 2).rewards((d_w, broken)[rank], ids)
        )

    for found in world.run(share):
        assert found.isnan().tolist() == [[False, True], [False, False]]


class HeadShard(nn.Module):
    def __init__(self, weight, rank, ranks):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.tp_rank, self.tp_size = rank, ranks


class GatheringModel(nn.Module):
    """Its logits are gathered from all ranks, as vLLM's are."""

    def __init__(self, parts, rank, world, strange):
        super().__init__()
        self.lm_head = HeadShard(parts[rank], rank, world.size)
        self.world, self.parts, self.strange = world, parts, strange

    def compute_logits(self, h):
        mine = torch.zeros(self.world.size, len(h), len(self.lm_head.weight))
        mine[self.lm_head.tp_rank] = h @ self.lm_head.weight.T
        logits = torch.cat(tuple(self.world.sum_over_ranks(mine)), dim=-1)[:, :V]
        return self.strange(logits)


def found(monkeypatch, ranks, strange=lambda z: z):
    """What plain_lm_head_rows gives on each rank, or the ForkError it raises."""
    world, (_, parts) = ThreadedRanks(ranks), rows(ranks)
    monkeypatch.setattr(lm_head_rows, "parallel_ranks", world)

    def one(rank):
        try:
            return plain_lm_head_rows(GatheringModel(parts, rank, world, strange), BACKBONE)
        except ForkError as error:
            return error

    return world.run(one)


@pytest.mark.parametrize("ranks", [2, 4, 8])  # of eight, the last has padding alone
def test_a_head_on_several_ranks_is_accepted_on_each(monkeypatch, ranks):
    made = found(monkeypatch, ranks)
    assert [(one.tp_rank, one.tp_size) for one in made] == [(rank, ranks) for rank in range(ranks)]


@pytest.mark.parametrize("token", [3, 48])  # in the first rank's rows, in the last one's
def test_what_one_rank_alone_sees_all_refuse(monkeypatch, token):
    def strange(logits):
        logits = logits.clone()
        logits[:, token] *= 0.5
        return logits

    first, *others = found(monkeypatch, 4, strange)
    assert "they differ by" in str(first)
    assert {str(other) for other in others} == {str(first)}


def test_logits_in_another_order_than_the_ranks_are_refused(monkeypatch):
    made = found(monkeypatch, 2, lambda z: z.roll(PADDED // 2, dims=-1))
    assert all(isinstance(one, ForkError) for one in made)


def test_logits_that_are_gathered_on_one_rank_alone_are_refused(monkeypatch):
    made = found(monkeypatch, 2, lambda z: None)
    assert all("gathers logits on one rank alone" in str(one) for one in made)
