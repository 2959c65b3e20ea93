"""The kernels return what guidance.py returns: under Triton's interpreter, or on a GPU where there is one.

test_triton_kernels.py runs this file in a process of its own: TRITON_INTERPRET has to be set before Triton is
imported.
"""

from __future__ import annotations

import math

import pytest
import torch

from pad_vllm import guidance
from pad_vllm.answer_tokens import AnswerTokens
from pad_vllm.kernels import kernel_choice, triton_kernels

NEG_INF = float("-inf")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.set_default_device(DEVICE)


def generator(seed):
    return torch.Generator(DEVICE).manual_seed(seed)


@pytest.mark.parametrize("vocabulary", [5, 64, 700, 3001])
@pytest.mark.parametrize("k", [1, 3, 32, 40, 100])
def test_candidates_come_in_the_same_order(vocabulary, k):
    source = generator(vocabulary + k)
    # Rounded, so that many are equal; some masked, one row all masked, one with what is not a number.
    logits = (torch.randn(6, vocabulary, generator=source) * 4).round()
    logits[torch.rand(6, vocabulary, generator=source) < 0.2] = NEG_INF
    logits[1], logits[2, 3], logits[3, 2], logits[4, 0] = NEG_INF, math.nan, math.inf, -0.0
    rows = torch.tensor([0, 1, 2, 3, 4])
    for found, expected in zip(
        triton_kernels.candidates(logits, rows, k),
        guidance.candidates(logits, rows, k),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rewards_are_the_same_dot_products(dtype):
    source = generator(3)
    e = torch.randn(50, 1500, generator=source).to(dtype)
    d_w, ids = torch.randn(4, 1500, generator=source), torch.randint(50, (4, 7), generator=source)
    expected = guidance.token_rewards(d_w, ids, e)
    torch.testing.assert_close(
        triton_kernels.token_rewards(d_w, ids, e), expected, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("seed", range(6))
def test_guards_find_the_same_candidates(seed):
    source = generator(seed)
    G, K, L = 5, 6, 300 if seed == 5 else 40
    z = torch.randn(G, K, generator=source).sort(-1, descending=True).values * 3
    ids = torch.stack([torch.randperm(9, generator=source)[:K] for _ in range(G)])
    n = torch.randint(0, 5, (G,), generator=source)
    start = torch.randint(0, 8, (G,), generator=source)
    stop = start + torch.randint(0, L - 8, (G,), generator=source)
    tokens = torch.randint(9, (G, L), generator=source, dtype=torch.int32)
    one_a_row = AnswerTokens(tokens, start, stop)
    min_p = torch.tensor([0.0, 0.05, 0.3, 1.0, 0.1])
    eos_token_ids = torch.tensor([2, 4])[: seed % 3]
    texts = torch.cat(
        (tokens[:2] * 0, tokens.flip(0))
    )  # the rows' texts in it, the last row's first
    indexed = AnswerTokens(texts, start, stop, torch.arange(G + 1, 1, -1))
    assert torch.equal(indexed.row_tokens(), tokens)
    more = {"eos_token_ids": eos_token_ids, "n": n, "max_n": int(n.max())}
    for guards in (
        {"min_p": min_p, "answer": one_a_row},
        {"min_p": None, "answer": one_a_row},
        {"min_p": min_p, "answer": None},
        {"min_p": min_p, "answer": indexed},
    ):
        assert torch.equal(
            triton_kernels.capped_candidates(z, ids, **guards, **more),
            guidance.capped_candidates(z, ids, **guards, **more),
        )
    assert triton_kernels.capped_candidates(z, ids, min_p=None, answer=None, **more) is None


@pytest.mark.parametrize("seed", range(12))
def test_rows_are_written_alike(seed):
    source = generator(seed)
    V, k = (2500, 9) if seed % 2 else (30, 40)
    logits = torch.randn(7, V, generator=source) * 5
    logits[torch.rand(7, V, generator=source) < (0.0, 0.3, 0.9)[seed % 3]] = NEG_INF
    logits[2] = NEG_INF
    rows = torch.tensor([0, 2, 3, 5, 6])
    z, ids = guidance.candidates(logits, rows, k)
    reward = torch.randn(z.shape, generator=source) * 3
    if seed > 5:
        values = torch.tensor([math.nan, math.inf, NEG_INF, 3e38])
        where = torch.rand(z.shape, generator=source) < 0.1
        reward[where] = values[torch.randint(4, (int(where.sum()),), generator=source)]
    beta = torch.randn(5, generator=source) * 3
    top_k = torch.randint(1, z.shape[1] + 3, (5,), generator=source)
    capped = torch.rand(z.shape, generator=source) < 0.4 if seed % 4 else None
    excluded = torch.tensor([False, False, True, False, False]) if seed % 5 == 0 else None
    prices = torch.rand(z.shape, generator=source).round() * 4 if seed % 3 else None
    step = {"rows": rows, "z": z, "ids": ids, "reward": reward, "beta": beta, "top_k": top_k}
    step |= {"capped": capped, "prices": prices, "excluded": excluded}
    found, expected = logits.clone(), logits.clone()
    result = triton_kernels.guide(found, **step)
    expected_result = guidance.guide(expected, **step)
    assert torch.equal(result.unguided, expected_result.unguided)
    assert torch.equal(result.changed, expected_result.changed)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert torch.equal(found[[1, 4]], logits[[1, 4]])


def test_the_check_at_start_up_finds_them_equal_and_sees_a_difference(monkeypatch):
    sizes = kernel_choice.StepSizes(700, 690, 48, torch.float32, max_candidates=40)
    assert list(kernel_choice._candidate_counts(sizes)) == [1, 2, 4, 8, 16, 32, 64]
    assert kernel_choice.agrees_with_guidance(triton_kernels, DEVICE, sizes)
    sizes = kernel_choice.StepSizes()
    assert kernel_choice.agrees_with_guidance(triton_kernels, DEVICE, sizes)
    monkeypatch.setattr(triton_kernels, "token_rewards", lambda *a: -guidance.token_rewards(*a))
    assert not kernel_choice.agrees_with_guidance(triton_kernels, DEVICE, sizes)
