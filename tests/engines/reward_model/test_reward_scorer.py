"""The reward model with its own cache gives the rewards that the PyTorch twin gives to the whole text."""

from __future__ import annotations

import random

import pytest
import tiny
import torch
from counting_list import CountingList
from uncached_rewards import UncachedRewards

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.engines.reward_model.cache_capacity import BLOCK_SIZE
from pad_vllm.engines.reward_model.forked_decoder import DecoderError, ForkedDecoder
from pad_vllm.engines.reward_model.forward_batch import RowChunk, pack_chunks
from pad_vllm.engines.reward_model.reward_scorer import RewardScorer
from pad_vllm.engines.reward_model.scoring_request import ScoringRequest, TreeNode

HEADS = " heads"
FORKS = {"llama": 2, "mistral": 3, "qwen2": 1, "qwen3": 0, "gemma3": 3, "gemma3 heads": 6}
V = tiny.COMMON["vocab_size"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """family -> its checkpoint and a random adapter's folder, made when asked for."""
    root = tmp_path_factory.mktemp("persrm")
    known = {}

    def make(family):
        if family not in known:
            heads, fork = family.endswith(HEADS), FORKS[family]
            base = tiny.checkpoint(family.removesuffix(HEADS), root / family)
            folder = root / f"{family}_adapter"
            tiny.write_adapter(
                base, folder, fork_layer=fork, std=0.15, constants=heads, gates=heads
            )
            known[family] = (base, load_adapter(folder))
        return known[family]

    return make


def scorer(base, adapter, *, exact=True, budget=64, blocks=40):
    probe = ForkedDecoder(
        str(base), adapter, dtype=torch.float32, device=torch.device("cpu"), cache_bytes=1 << 24
    )
    each = sum(cache.nbytes // probe.num_blocks for cache in probe.kv_caches.values())
    decoder = ForkedDecoder(
        str(base),
        adapter,
        dtype=torch.float32,
        device=torch.device("cpu"),
        cache_bytes=each * blocks,
    )
    assert decoder.num_blocks == blocks
    return RewardScorer(decoder, adapter, FailureLog(print), exact=exact, budget=budget)


def random_candidates(rng, length, count, *, back=3):
    made = []
    for _ in range(count):
        keep = max(1, length - rng.choice([0, 0, 0, 1, back]))
        made.append((keep, tuple(rng.randrange(3, V) for _ in range(rng.choice([0, 1, 1, 2, 4])))))
    if count > 2:  # two that begin alike
        keep, added = made[0]
        made[1] = (keep, (*added, 5, 6))
    return made


def check(found, requests, slow, *, exact):
    for row, request in zip(found.tolist(), requests, strict=True):
        if request.must_finish:
            wanted = [
                slow.reward(list(request.tokens), one, request.w, exact=exact)
                for one in request.candidates
            ]
            assert row[: len(request.candidates)] == pytest.approx(wanted, abs=2e-4)
            assert not any(row[len(request.candidates) :])


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("family", FORKS)
def test_rows_that_join_grow_shrink_and_leave_get_the_rewards_of_their_text(made, family, exact):
    base, adapter = made(family)
    fast, slow = scorer(base, adapter, exact=exact), UncachedRewards(base, adapter)
    rng = random.Random(family)
    rows = {}
    for step in range(10):
        if step % 2 == 0:
            prompt = [3 + (7 * i) % 300 for i in range(rng.choice([1, 5, 40, 90]))]
            rows[step] = ([*prompt, rng.randrange(3, V)], [rng.gauss(0, 1) for _ in range(3)])
        if len(rows) > 4:
            del rows[rng.choice(list(rows))]
        requests = []
        for key, (tokens, w) in rows.items():
            requests.append(
                ScoringRequest(key, list(tokens), tuple(w), random_candidates(rng, len(tokens), 4))
            )
        check(fast(requests), requests, slow, exact=exact)
        for tokens, _ in rows.values():  # a second tokenizer takes tokens back
            back = rng.choice([0, 0, 1, 2])
            del tokens[max(1, len(tokens) - back) :]
            tokens += [rng.randrange(3, V) for _ in range(rng.choice([1, 1, 2]))]
    assert fast.failure_log.counts == {}
    assert fast([]).shape == (0, 0)
    assert fast.used_blocks == 0


def test_at_the_top_a_cache_of_the_same_size_holds_one_stream(made):
    base, adapter = made("gemma3" + HEADS)
    decoder = scorer(base, adapter)._decoder
    kv = tiny.COMMON["num_key_value_heads"]
    assert [cache.shape[3] for cache in decoder.kv_caches.values()] == [kv] * FORKS[
        "gemma3" + HEADS
    ]
    widths = []
    decoder._lower.layers[0].register_forward_hook(
        lambda _, given, __: widths.append(given[0].shape[0])
    )
    RewardScorer(decoder, adapter, FailureLog(print), exact=True, budget=64)(
        [ScoringRequest(0, [5] * 9, (1.0, 0.0, 0.0), [(9, (7,))])]
    )
    assert widths == [1]


def test_a_cache_too_small_for_all_rows_gives_the_same_rewards_with_more_work(made):
    base, adapter = made("llama")
    slow, rng = UncachedRewards(base, adapter), random.Random(0)
    small, large = (scorer(base, adapter, blocks=blocks, budget=24) for blocks in (7, 60))
    rows = {key: [rng.randrange(3, V) for _ in range(60)] for key in range(4)}
    for _ in range(3):
        requests = [
            ScoringRequest(k, list(t), (1.0, -1.0, 0.5), random_candidates(rng, len(t), 3))
            for k, t in rows.items()
        ]
        found = small(requests)
        check(found, requests, slow, exact=True)
        assert torch.allclose(found, large(requests), atol=2e-4)
        for tokens in rows.values():
            tokens.append(rng.randrange(3, V))
    assert small.counts.preempted > 0
    assert small.counts.tokens > large.counts.tokens
    assert small.failure_log.counts == large.failure_log.counts == {}
    assert large.counts.preempted == 0


def test_a_row_that_no_cache_holds_fails_and_the_others_do_not(made):
    base, adapter = made("llama")
    fast, slow = scorer(base, adapter, blocks=4), UncachedRewards(base, adapter)
    w = (1.0, 0.0, 0.0)
    requests = [
        ScoringRequest(0, [3] * (4 * BLOCK_SIZE + 1), w, [(65, (5,))]),
        ScoringRequest(1, [4] * 20, w, [(20, (5,)), (20, (6,))]),
    ]
    found = fast(requests)
    assert found[0].isnan().all()
    check(found[1:], requests[1:], slow, exact=True)
    assert fast.failure_log.counts == {"no room": 1}


def test_tokens_that_only_a_larger_base_has_get_reward_0_and_change_no_other(made):
    base, adapter = made("llama")
    fast, slow, w = scorer(base, adapter), UncachedRewards(base, adapter), (1.0, 0.5, 0.0)
    requests = [
        ScoringRequest(0, [3, 4, V + 5, 6], w, [(4, (V + 7,)), (4, (5,))]),
        ScoringRequest(1, [4] * 20, w, [(20, (5,)), (20, (6,))]),
    ]
    found = fast(requests)
    assert found[0, 0] == 0
    check(found[1:], requests[1:], slow, exact=True)
    wanted = slow.reward([3, 4, V - 1, 6], (4, (5,)), w, exact=True)
    assert found[0, 1].item() == pytest.approx(wanted, abs=2e-4)


def test_a_row_that_overflows_spoils_neither_its_neighbours_nor_who_gets_its_blocks(made):
    base, adapter = made("llama")
    fast, slow, w = scorer(base, adapter, blocks=4), UncachedRewards(base, adapter), (1.0, 0.5, 0.0)
    fast._decoder._embed.weight[7] = float("inf")
    broken = ScoringRequest(0, [7] * 20, w, [(20, (5,))])
    sound = [ScoringRequest(key, [key] * 18, w, [(18, (5,)), (18, (6,))]) for key in (11, 12)]
    found = fast([broken, sound[0]])
    assert found[0, 0].isnan()
    check(found[1:], sound[:1], slow, exact=True)
    check(fast(sound), sound, slow, exact=True)


def test_a_common_prefix_is_computed_once_also_by_rows_that_join_together(made):
    base, adapter = made("llama")
    fast, slow = scorer(base, adapter, budget=400), UncachedRewards(base, adapter)
    prefix = [3 + i for i in range(3 * BLOCK_SIZE)]
    requests = [
        ScoringRequest(k, [*prefix, 100 + k], (1.0, 1.0, 1.0), [(49, (7,)), (49, (8,))])
        for k in range(4)
    ]
    check(fast(requests), requests, slow, exact=True)
    assert fast.counts.tokens == len(prefix) + 4
    late = [ScoringRequest(9, [*prefix, 111], (1.0, 0.0, 1.0), [(49, (7,)), (49, (8,))])]
    check(fast(late), late, slow, exact=True)
    assert fast.counts.tokens == len(prefix) + 5


def test_a_row_that_takes_back_a_shared_prefix_leaves_the_others_theirs(made):
    base, adapter = made("llama")
    fast, slow = scorer(base, adapter), UncachedRewards(base, adapter)
    prefix = [3 + i for i in range(2 * BLOCK_SIZE)]
    w = (1.0, 1.0, -1.0)
    both = [ScoringRequest(k, [*prefix, 100], w, [(33, (7,))]) for k in range(2)]
    check(fast(both), both, slow, exact=True)
    other = [ScoringRequest(0, [*prefix[:20], 90, 91], w, [(22, (7, 8))]), both[1]]
    check(fast(other), other, slow, exact=True)
    again = [ScoringRequest(5, [*prefix, 101], w, [(33, (7,))]), both[1]]
    check(fast(again), again, slow, exact=True)


def test_rows_that_look_ahead_are_brought_up_to_date_with_what_the_budget_leaves(made):
    base, adapter = made("llama")
    fast, slow = scorer(base, adapter, budget=32), UncachedRewards(base, adapter)
    w = (1.0, 0.0, 0.0)
    long = [3 + i % 200 for i in range(70)]
    now = ScoringRequest(0, [5] * 10, w, [(10, (7,))])
    fast([now, ScoringRequest(1, long, w, (), must_finish=False)])
    assert fast.counts.tokens == 32
    fast([ScoringRequest(1, long, w, (), must_finish=False)])
    assert fast.counts.tokens == 64
    requests = [ScoringRequest(1, long, w, [(70, (7,)), (69, (8,))])]
    check(fast(requests), requests, slow, exact=True)
    assert fast.counts.tokens == 80


def test_a_request_without_candidates_first_leaves_only_the_candidates_to_run(made):
    base, adapter = made("llama")
    fast, slow = scorer(base, adapter), UncachedRewards(base, adapter)
    w = (1.0, 0.0, 0.0)
    fast([ScoringRequest(0, [5] * 10, w)])
    passes = fast.counts.passes
    requests = [ScoringRequest(0, [5] * 10, w, [(10, (7,)), (9, (8,))])]
    check(fast(requests), requests, slow, exact=True)
    assert fast.counts.passes == passes
    requests = [ScoringRequest(0, [5] * 10, w, [(10, (7, 9)), (9, (8,))])]
    check(fast(requests), requests, slow, exact=True)
    assert (fast.counts.passes, fast.counts.nodes) == (passes + 1, 1)


def test_a_cache_without_room_for_two_blocks_is_refused(made):
    base, adapter = made("llama")
    with pytest.raises(DecoderError, match="Raise cache_gib"):
        ForkedDecoder(
            str(base), adapter, dtype=torch.float32, device=torch.device("cpu"), cache_bytes=1000
        )


def test_tokens_that_a_request_calls_unchanged_are_not_read_again(made):
    base, adapter = made("llama")
    fast, twin, rng = scorer(base, adapter), scorer(base, adapter), random.Random(1)
    w, unchanged = (1.0, -1.0, 0.5), 0
    tokens = CountingList(rng.randrange(3, V) for _ in range(100))
    for _ in range(20):
        one = ScoringRequest(
            0, tokens, w, random_candidates(rng, len(tokens), 4), num_unchanged=unchanged
        )
        tokens.read = 0
        found = fast([one])
        assert not unchanged or tokens.read < 4 * BLOCK_SIZE
        assert torch.equal(found, twin([ScoringRequest(0, list(tokens), w, one.candidates)]))
        unchanged = len(tokens) - rng.choice([0, 1, 2])
        tokens[unchanged:] = [rng.randrange(3, V) for _ in range(rng.choice([1, 2, 3]))]


def test_the_numbers_of_a_pass_reach_the_device_in_one_piece():
    nodes = [TreeNode(9, 40, ()), TreeNode(8, 41, (0,))]
    pieces = [RowChunk([4, 0, 7], 38, [5, 6], nodes, 39), RowChunk([2], 0, [5], [], 0)]
    made = pack_chunks(pieces, BLOCK_SIZE, {}, torch.device("cpu"))
    sent = [made.ids, made.positions, made.output_indices, made.chunk_index, made.batch.slots]
    sent += [
        part
        for group in made.batch.groups
        for part in (group.token_index, group.block_table, group.positions)
    ]
    assert len({tensor.untyped_storage().data_ptr() for tensor in sent}) == 1
    assert made.ids.tolist() == [5, 6, 9, 8, 5]
    assert made.positions.tolist() == [38, 39, 40, 41, 0]
    assert made.batch.slots.tolist() == [7 * 16 + 6, 7 * 16 + 7, 7 * 16 + 8, 7 * 16 + 9, 2 * 16]
    assert made.output_indices.tolist() == [1, 2, 3, 4]
    assert made.chunk_index.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_what_a_block_held_before_does_not_reach_a_row(made, family):
    base, adapter = made(family)
    clean, poisoned, rng = scorer(base, adapter), scorer(base, adapter), random.Random(2)
    rows = {key: [rng.randrange(3, V) for _ in range(length)] for key, length in enumerate((5, 90))}

    def poison(blocks):
        for cache in poisoned._decoder.kv_caches.values():
            cache.movedim(cache.shape.index(poisoned._decoder.num_blocks), 0)[blocks] = float("nan")

    poison(range(40))
    for _ in range(20):
        requests = [
            ScoringRequest(k, list(t), (1.0, -1.0, 0.5), random_candidates(rng, len(t), 4))
            for k, t in rows.items()
        ]
        found = poisoned(requests)
        assert not found.isnan().any()
        assert torch.equal(found, clean(requests))
        blocks = poisoned._pool  # what can still be found is not poisoned
        poison([block for block in blocks._unused if block not in blocks._keys])
        for tokens in rows.values():
            del tokens[len(tokens) - rng.choice([0, 0, 1, 2]) :]
            tokens += [rng.randrange(3, V) for _ in range(rng.choice([1, 2]))]


def test_one_mask_serves_both_streams_and_all_heads():
    pieces = [RowChunk([4, 7], 20, [5], [], 20), RowChunk([2, 3], 18, [5], [], 18)]
    (group,) = pack_chunks(pieces, BLOCK_SIZE, {}, torch.device("cpu")).batch.groups
    once, folded = group.mask(None, 1), group.mask(None, 3)
    assert once.shape == (2, 1, 1, 2 * BLOCK_SIZE)
    assert once.untyped_storage().data_ptr() == group.visible.untyped_storage().data_ptr()
    assert folded.shape == (2, 1, 3, 2 * BLOCK_SIZE)
    assert folded.sum(-1).tolist() == [[[21] * 3], [[19] * 3]]


def test_candidates_side_by_side_take_no_positions_from_a_row(made):
    base, adapter = made("llama")
    fast, slow = scorer(base, adapter), UncachedRewards(base, adapter)
    length = tiny.COMMON["max_position_embeddings"] - 4
    each = [(length, (number, 5, 6, 7)) for number in range(3, 8)]
    requests = [ScoringRequest(0, [3 + i % 300 for i in range(length)], (1.0, 0.5, 0.0), each)]
    check(fast(requests), requests, slow, exact=True)
    assert fast.counts.nodes == 3 * len(each)
    beyond = ScoringRequest(0, [3] * length, (1.0, 0.0, 0.0), [(length, (5,) * 6)])
    assert fast([beyond]).isnan().all()


def test_weights_that_were_discarded_under_it_are_noticed(made):
    score = scorer(*made("llama"))
    score.require_own_weights()
    score._heads[1].zero_()
    with pytest.raises(RuntimeError, match="lost its weights.*Start the server again"):
        score.require_own_weights()
