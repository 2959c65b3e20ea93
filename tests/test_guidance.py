"""The rule: the batched version is its plain twin row by row, and harms no row it should not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference_guidance import guide_row

from pad_vllm import guidance
from pad_vllm.answer_tokens import AnswerTokens
from pad_vllm.params import NO_REPEAT_LENGTHS

NEG_INF = float("-inf")


@st.composite
def batches(draw, *, broken=False):
    """Logits, some masked, with rows to guide and everything they are guided by."""
    R, V = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(R, V, generator=source) * 5
    # Two equal logits at the end of the top k: either may be the candidate.
    assume(all(len(row.unique()) == V for row in logits))
    reward = torch.randn(R, V, generator=source) * 3
    logits[torch.rand(R, V, generator=source) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.1]))] = (
        NEG_INF
    )
    if broken:
        values = torch.tensor([math.nan, math.inf, NEG_INF, 3e38])
        where = torch.rand(R, V, generator=source) < 0.15
        reward[where] = values[torch.randint(4, (int(where.sum()),), generator=source)]
    rows = sorted(draw(st.sets(st.integers(0, R - 1), min_size=1)))
    G = len(rows)
    beta = torch.tensor(draw(st.lists(st.floats(-10, 10, width=32), min_size=G, max_size=G)))
    top_k = torch.tensor(draw(st.lists(st.integers(1, V + 3), min_size=G, max_size=G)))
    return logits, torch.tensor(rows), reward, beta, top_k


def guide(logits, rows, reward, beta, top_k):
    """What the processor does: candidates of the largest k, then one call for all rows."""
    z, ids = guidance.candidates(logits, rows, int(top_k.max()))
    reward = reward[rows].gather(-1, ids)
    result = guidance.guide(logits, rows=rows, z=z, ids=ids, reward=reward, beta=beta, top_k=top_k)
    return result.unguided


def by_hand(logits, rows, reward, beta, top_k):
    expected = logits.clone()
    for i, row in enumerate(rows.tolist()):
        expected[row] = guide_row(logits[row], reward[row], float(beta[i]), int(top_k[i]))
    return expected


@settings(deadline=None, max_examples=300)
@given(batches())
def test_the_batch_gives_what_the_plain_twin_gives_row_by_row(batch):
    logits, *rest = batch
    expected = by_hand(logits, *rest)
    assert not guide(logits, *rest).any()
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=300)
@given(batches(broken=True))
def test_broken_rewards_leave_their_row_as_it_came_and_are_counted(batch):
    logits, rows, reward, beta, top_k = batch
    before, expected = logits.clone(), by_hand(logits, rows, reward, beta, top_k)
    unguided = guide(logits, rows, reward, beta, top_k)
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)
    broken = [
        row
        for i, row in enumerate(rows.tolist())
        if not _sound(before[row], reward[row], float(beta[i]), int(top_k[i]))
    ]
    assert rows[unguided].tolist() == broken
    assert torch.equal(logits[broken], before[broken])


def _sound(z, reward, beta, top_k):
    best = z.topk(min(top_k, len(z)))
    legal = best.values.isfinite()
    return bool((best.values + beta * reward[best.indices])[legal].isfinite().all())


@settings(deadline=None, max_examples=200)
@given(batches(broken=True))
def test_masked_tokens_stay_masked_and_other_rows_keep_every_bit(batch):
    logits, rows, *rest = batch
    before = logits.clone()
    guide(logits, rows, *rest)
    assert (logits[before == NEG_INF] == NEG_INF).all()
    others = [row for row in range(len(logits)) if row not in rows.tolist()]
    assert torch.equal(logits[others], before[others])
    assert not logits.isnan().any()


def test_outside_the_top_k_every_logit_is_minus_infinity():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    one = torch.ones(1)
    guide(logits, torch.tensor([0]), torch.tensor([[0.0, 9.0, 99.0, 99.0]]), one, 2 * one)
    assert logits.tolist() == [[3.0, 11.0, NEG_INF, NEG_INF]]


def test_rows_of_different_k_share_one_call():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    rows, zero = torch.tensor([0, 1]), torch.zeros(2, 3)
    guide(logits, rows, zero, torch.ones(2), torch.tensor([1, 3]))
    assert logits.tolist() == [[3.0, NEG_INF, NEG_INF], [3.0, 2.0, 1.0]]


def test_fewer_legal_tokens_than_k_make_no_nan():
    logits = torch.tensor([[NEG_INF, 1.0, NEG_INF]])
    one = torch.ones(1)
    guide(logits, torch.tensor([0]), torch.tensor([[math.nan, 2.0, math.inf]]), one, 3 * one)
    assert logits.tolist() == [[NEG_INF, 3.0, NEG_INF]]


@pytest.mark.parametrize("broken", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize("where", [slice(None), 70])
def test_a_row_that_arrives_broken_is_left_as_it_came_and_counted(broken, where):
    logits = torch.randn(2, 200)
    logits[0, where] = torch.tensor(broken)
    before, one = logits.clone(), torch.ones(2)
    unguided = guide(logits, torch.tensor([0, 1]), torch.zeros(2, 200), one, 4 * one)
    assert unguided.tolist() == [True, False]
    torch.testing.assert_close(logits[0], before[0], rtol=0, atol=0, equal_nan=True)
    assert logits[1].isfinite().sum() == 4
    expected = guide_row(before[0], torch.zeros(200), 1.0, 4)
    torch.testing.assert_close(expected, before[0], rtol=0, atol=0, equal_nan=True)


def test_zero_beta_only_cuts_to_the_top_k():
    logits = torch.randn(1, 8)
    before = logits.clone()
    guide(logits, torch.tensor([0]), torch.randn(1, 8), torch.zeros(1), torch.tensor([8]))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("seed", range(5))
def test_one_direction_a_row_gives_the_weighted_sum_of_the_features(seed):
    torch.manual_seed(seed)
    G, K, D, r, H = 3, 5, 4, 2, 16
    h_B, h_T, w, e = torch.randn(G, H), torch.randn(G, H), torch.randn(G, D), torch.randn(G, K, H)
    A, B, C = torch.randn(D, r, H), torch.randn(D, H, r), torch.randn(D, H)
    G_heads = torch.randn(D, r, H) / H**0.5
    for heads in ((A, B), (A, B, C), (A, B, None, G_heads), (A, B, C, G_heads)):
        phi = guidance.features(h_B, h_T, e, *heads)
        fast = guidance.rewards(guidance.reward_direction(h_B, h_T, w, *heads), e)
        torch.testing.assert_close(torch.einsum("gkd,gd->gk", phi, w), fast, rtol=1e-4, atol=1e-3)


def test_features_are_the_formula_written_out():
    torch.manual_seed(0)
    D, r, H = 3, 2, 8
    h_B, h_T, e = torch.randn(H), torch.randn(H), torch.randn(1, H)
    A, B = torch.randn(D, r, H), torch.randn(D, H, r)
    expected = [float(e[0] @ ((h_T - h_B) + B[i] @ (A[i] @ h_T))) for i in range(D)]
    assert guidance.features(h_B, h_T, e, A, B)[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_features_with_constants_are_the_formula_written_out():
    torch.manual_seed(1)
    D, r, H = 3, 2, 8
    h_B, h_T, e = torch.randn(H), torch.randn(H), torch.randn(1, H)
    A, B, C = torch.randn(D, r, H), torch.randn(D, H, r), torch.randn(D, H)
    expected = [float(e[0] @ ((h_T - h_B) + B[i] @ (A[i] @ h_T) + C[i])) for i in range(D)]
    found = guidance.features(h_B, h_T, e, A, B, C)
    assert found[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_features_with_gates_are_the_formula_written_out():
    torch.manual_seed(4)
    D, r, H = 3, 2, 8
    h_B, h_T, e = torch.randn(H), torch.randn(H), torch.randn(1, H)
    A, B, C = torch.randn(D, r, H), torch.randn(D, H, r), torch.randn(D, H)
    G = torch.randn(D, r, H)
    expected = []
    for i in range(D):
        low_rank = torch.tensor(
            [
                2 / (1 + math.exp(-float(G[i, row] @ h_T))) * float(A[i, row] @ h_T)
                for row in range(r)
            ]
        )
        expected.append(float(e[0] @ ((h_T - h_B) + B[i] @ low_rank + C[i])))
    found = guidance.features(h_B, h_T, e, A, B, C, G)
    assert found[0].tolist() == pytest.approx(expected, abs=1e-4)
    w = torch.randn(D)
    d_w = guidance.reward_direction(h_B, h_T, w, A, B, C, G)
    assert float(e[0] @ d_w) == pytest.approx(float(w @ torch.tensor(expected)), abs=1e-4)


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_gates_of_zeros_change_no_bit(rows):
    torch.manual_seed(5)
    D, r, H = 3, 5, 48
    h_B, h_T, w = torch.randn(rows, H), torch.randn(rows, H), torch.randn(rows, D)
    heads = torch.randn(D, r, H), torch.randn(D, H, r), torch.randn(D, H)
    closed = torch.zeros(D, r, H)
    for plain, gated in (
        (
            guidance.reward_direction(h_B, h_T, w, *heads),
            guidance.reward_direction(h_B, h_T, w, *heads, closed),
        ),
        (guidance.head_directions(h_T, *heads), guidance.head_directions(h_T, *heads, closed)),
    ):
        assert torch.equal(plain, gated)


def test_with_heads_only_heads_and_constants_make_the_direction():
    torch.manual_seed(2)
    h, w, C = torch.randn(2, 8), torch.randn(2, 3), torch.randn(3, 8)
    A, B = torch.randn(3, 2, 8), torch.randn(3, 8, 2)
    expected = torch.stack(
        [sum(w[g, i] * (B[i] @ (A[i] @ h[g]) + C[i]) for i in range(3)) for g in range(2)]
    )
    torch.testing.assert_close(guidance.reward_direction(h, h, w, A, B, C), expected)
    assert torch.equal(guidance.reward_direction(h, h, w, A, B * 0, C), w @ C)


def test_contiguous_heads_are_the_same_heads_and_need_no_copy():
    torch.manual_seed(3)
    h, w = torch.randn(2, 8), torch.randn(2, 3)
    A, B = torch.randn(3, 2, 8), torch.randn(3, 8, 2)
    contiguous = guidance.contiguous_for_direction(B)
    assert torch.equal(contiguous, B)
    assert contiguous.transpose(1, 2).flatten(0, 1).data_ptr() == contiguous.data_ptr()
    expected = guidance.reward_direction(h, h, w, A, B)
    torch.testing.assert_close(guidance.reward_direction(h, h, w, A, contiguous), expected)


def test_a_reward_trunk_like_the_base_and_empty_heads_give_no_reward():
    h, w = torch.randn(2, 8), torch.randn(2, 3)
    d_w = guidance.reward_direction(h, h, w, torch.randn(3, 2, 8), torch.zeros(3, 8, 2))
    assert torch.equal(d_w, torch.zeros(2, 8))


@pytest.mark.parametrize(("rows", "size", "k"), [(1, 4096, 5), (3, 64 * 40, 39), (2, 1000, 7)])
def test_candidates_in_two_rounds_are_those_of_one_topk(rows, size, k):
    logits = torch.randperm(rows * size).float().view(rows, size)
    logits[:, ::3] = float("-inf")
    z, ids = guidance.candidates(logits, torch.arange(rows), k)
    assert torch.equal(z, logits.topk(k).values)
    assert torch.equal(ids, logits.topk(k).indices)


def ranked(row, k):
    """The k best tokens of a row by hand: the higher logit first, among equals the lower token id."""
    return sorted(range(len(row)), key=lambda token: (-float(row[token]), token))[:k]


@pytest.mark.parametrize("size", [49, 64 * 8, 64 * 100, 64 * 30 + 17])
def test_a_rows_candidates_are_its_own_whatever_k_its_neighbours_ask_for(size):
    torch.manual_seed(size)
    logits = (torch.randn(6, size) * 3).bfloat16().float()  # ties everywhere, as in a served model
    logits[:, ::7] = NEG_INF
    for k in (1, 5, 20, 48):
        single = [
            guidance.candidates(logits[row : row + 1], torch.tensor([0]), k) for row in (1, 4)
        ]
        for largest_k in (k, 49, 400):
            z, ids = guidance.candidates(logits, torch.tensor([1, 2, 4]), largest_k)
            for index, row, own in ((0, 1, single[0]), (2, 4, single[1])):
                assert ids[index, :k].tolist() == ranked(logits[row], k)
                assert torch.equal(ids[index, :k], own[1][0])
                assert torch.equal(z[index, :k], own[0][0])


def test_equal_logits_of_either_zero_go_by_token_id():
    logits = torch.tensor([[0.0, -0.0, 0.0, -0.0, -1.0]]).repeat(1, 100)
    _, ids = guidance.candidates(logits, torch.tensor([0]), 10)
    assert ids[0].tolist() == ranked(logits[0], 10)


def test_candidates_of_some_rows_among_many_are_found_in_bounded_pieces(monkeypatch):
    monkeypatch.setattr(guidance, "_MAX_COPY_NUMEL", 3 * 640)
    logits = torch.randn(20, 640).bfloat16().float()
    rows = torch.arange(0, 20, 2)
    _, ids = guidance.candidates(logits, rows, 9)
    assert ids.tolist() == [ranked(logits[row], 9) for row in rows]


def test_rewards_of_many_candidates_are_gathered_in_bounded_pieces(monkeypatch):
    torch.manual_seed(0)
    d_w, ids, embedding = torch.randn(7, 8), torch.randint(50, (7, 5)), torch.randn(50, 8)
    expected = guidance.rewards(d_w, embedding[ids])
    monkeypatch.setattr(guidance, "_MAX_COPY_NUMEL", 2 * 5 * 8)
    torch.testing.assert_close(guidance.token_rewards(d_w, ids, embedding), expected)


def test_a_row_that_ends_has_no_token_but_its_end_and_no_other_row_changes():
    logits = torch.randn(4, 6)
    logits[0, 5] = NEG_INF  # not among the candidates that guidance left
    before = logits.clone()
    rows, ending = torch.tensor([0, 1, 3]), torch.tensor([True, False, False])
    guidance.force_end_token(logits, rows, 5, ending)
    assert logits[0].tolist() == [NEG_INF] * 5 + [0.0]
    assert torch.equal(logits[1:], before[1:])


@pytest.mark.parametrize("method", ["index_put_", "clamp_"])
@pytest.mark.parametrize(
    "write",
    [
        lambda logits, row: guide(
            logits, row, torch.randn(2, 100), torch.ones(1), torch.tensor([5])
        ),
        lambda logits, row: guidance.force_end_token(logits, row, 7, torch.tensor([True])),
    ],
    ids=["guide", "force_end_token"],
)
def test_where_a_write_fails_no_row_is_left_without_a_token(monkeypatch, method, write):
    logits, rows = torch.randn(2, 100), torch.tensor([1])
    original = getattr(torch.Tensor, method)

    def fail(self, *args, **kwargs):
        if self is logits:
            raise RuntimeError("out of memory")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, method, fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        write(logits, rows)
    assert logits.isfinite().all()


@settings(deadline=None, max_examples=200)
@given(batches(), st.data())
def test_with_the_guards_the_batch_gives_what_the_plain_twin_gives(batch, data):
    logits, rows, reward, beta, top_k = batch
    short_text = st.lists(st.integers(0, min(logits.shape[1] - 1, 2)), max_size=12)
    answers = [data.draw(short_text) for _ in rows]
    prompts = [data.draw(short_text) for _ in rows]
    n = [data.draw(st.sampled_from(NO_REPEAT_LENGTHS)) for _ in rows]
    shares = torch.tensor([data.draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])) for _ in rows])
    ends = data.draw(short_text)
    before, expected = logits.clone(), logits.clone()
    for i, row in enumerate(rows.tolist()):
        expected[row] = guide_row(
            before[row],
            reward[row],
            float(beta[i]),
            int(top_k[i]),
            answers[i],
            n[i],
            float(shares[i]),
            ends,
        )
    pairs = zip(prompts, answers, strict=True)
    texts = [torch.tensor([*prompt, *answer]).int() for prompt, answer in pairs]
    answer = AnswerTokens(
        tokens=torch.nn.utils.rnn.pad_sequence(texts, batch_first=True),
        start=torch.tensor([len(prompt) for prompt in prompts]),
        stop=torch.tensor([len(text) for text in texts]),
    )
    z, ids = guidance.candidates(logits, rows, int(top_k.max()))
    capped = guidance.capped_candidates(
        z,
        ids,
        min_p=shares,
        eos_token_ids=torch.tensor(ends),
        answer=answer,
        n=torch.tensor(n),
        max_n=max(n),
    )
    result = guidance.guide(
        logits,
        rows=rows,
        z=z,
        ids=ids,
        reward=reward[rows].gather(-1, ids),
        beta=beta,
        top_k=top_k,
        capped=capped,
    )
    assert not result.unguided.any()
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_an_unlikely_token_gains_no_more_than_the_average_and_may_lose():
    logits = torch.tensor([[3.0, 2.0, -3.0, -4.0]])
    z, ids = guidance.candidates(logits, torch.tensor([0]), 4)
    none = torch.tensor([], dtype=torch.int64)
    capped = guidance.below_min_p(z, ids, torch.tensor([0.05]), none)
    assert capped.tolist() == [[False, False, True, True]]
    assert not guidance.below_min_p(z, ids, torch.tensor([0.0]), none).any()
    ends = torch.tensor([7, 3])
    assert guidance.below_min_p(z, ids, torch.tensor([0.05]), ends).tolist() == [
        [False, False, True, False]
    ]
    one = torch.ones(1)
    reward = torch.tensor([[0.0, 0.0, 9.0, -1.0]])
    guidance.guide(
        logits,
        rows=torch.tensor([0]),
        z=z,
        ids=ids,
        reward=reward,
        beta=one,
        top_k=4 * one,
        capped=capped,
    )
    assert logits[0, 2] < -2.9
    assert logits[0, 3] == -5.0


def test_candidates_of_guided_rows_cost_their_price_and_unguided_rows_stay_as_they_came():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 3)
    before, rows = logits.clone(), torch.tensor([0, 1, 2])
    z, ids = guidance.candidates(logits, rows, 3)
    result = guidance.guide(
        logits,
        rows=rows,
        z=z,
        ids=ids,
        reward=torch.tensor([[0.0, 1.0, 0.0], [3e38, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        beta=torch.tensor([1.0, 2.0, 1.0]),  # the second row's score is too large for float32
        top_k=torch.tensor([3, 3, 3]),
        prices=torch.tensor([[1.5, 0.0, 0.5]] * 3),
        excluded=torch.tensor([False, False, True]),
    )
    assert result.unguided.tolist() == [False, True, True]
    assert result.changed.tolist() == [True, False, False]
    assert logits[0].tolist() == [1.5, 3.0, 0.5, NEG_INF]
    assert torch.equal(logits[1:], before[1:])
