"""Credit: what the critic sees, whom it may not see, and the sums that make a token's share."""

from __future__ import annotations

import pytest
import tiny
import torch

from pad_vllm.evaluation.lexical_scorers import score_positive
from pad_vllm.training.credit import token_credit
from pad_vllm.training.credit.token_credit import (
    CriticPrompt,
    CriticStatistics,
    critic_prompt,
    discounted_sums,
    scores_so_far,
)
from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.objective.fork_cache import CachedResponse

H = 6


def prompt(half, seed, answers=2, length=8, known=True):
    """Answers whose score so far is, up to noise, the share of their score that is known."""
    torch.manual_seed(seed)
    y = torch.randn(answers, 1)
    y = y - y.mean()
    h = [torch.randn(length, H) for _ in range(answers)]
    before = [one * torch.arange(length)[:, None] / length for one in y]
    return CriticPrompt(h, before, y if known else torch.full((answers, 1), torch.nan), half)


def fitted(prompts):
    sums = CriticStatistics.zeros(1, H)
    for one in prompts:
        sums.add(one)
    return sums.fit()


def test_a_trace_is_the_discounted_sum_of_what_follows():
    assert discounted_sums(torch.tensor([1.0, 2.0, 4.0]), 0.5).tolist() == [3.0, 4.0, 4.0]
    assert discounted_sums(torch.tensor([1.0, 2.0, 4.0]), 0.0).tolist() == [1.0, 2.0, 4.0]
    assert discounted_sums(torch.tensor([1.0, 2.0, 4.0]), 1.0).tolist() == [7.0, 6.0, 4.0]


def test_full_credit_is_the_score_less_what_was_expected():
    prompts = [prompt(n % 2, n) for n in range(40)]
    critics, one = fitted(prompts), prompts[0]
    (first, _) = critics.credit(one, 1.0)
    values = one.inputs(0, 0) @ critics.coefficients[1 - one.half, 0]
    assert torch.allclose(first[:, 0], one.y[0, 0] - values, atol=1e-5)


def test_the_score_so_far_tells_most_and_noise_in_the_state_nothing():
    prompts = [prompt(n % 2, n) for n in range(200)]
    assert 0.6 < fitted(prompts).explained.item() < 1
    blind = [
        CriticPrompt(p.h, [torch.zeros_like(b) for b in p.scores_so_far], p.y, p.half)
        for p in prompts
    ]
    assert abs(fitted(blind).explained.item()) < 0.05


def test_the_credit_of_a_half_is_by_the_critic_of_the_other():
    prompts = [prompt(n % 2, n) for n in range(40)]
    flipped = [CriticPrompt(p.h, p.scores_so_far, -p.y if p.half else p.y, p.half) for p in prompts]
    before, after = fitted(prompts), fitted(flipped)
    assert torch.allclose(before.coefficients[0], after.coefficients[0])
    one = next(p for p in prompts if p.half)
    same = [critics.credit(one, 0.9)[0] for critics in (before, after)]
    assert torch.allclose(*same)


def test_an_unknown_score_gives_no_credit_and_teaches_no_critic():
    unknown = prompt(0, 0, known=False)
    sums = CriticStatistics.zeros(1, H)
    sums.add(unknown)
    assert not any(part.any() for part in vars(sums).values())
    assert not fitted([prompt(n % 2, n) for n in range(8)]).credit(unknown, 0.9)[0].any()


def test_the_scores_so_far_are_those_of_the_text_before_each_token():
    tokenizer = tiny.tokenizer()
    texts = ["good. bad", "awful."]
    ids = [tokenizer.encode(text) for text in texts]
    group = PromptGroup(
        "q", "s", [5], ids, torch.zeros(2, 1, 2), prefix_scorers=("positive", None), conversation=()
    )
    tables = scores_so_far(group, tokenizer)
    mean = (score_positive(texts[0]) + score_positive(texts[1])) / 2
    assert [len(table) for table in tables] == [len(one) for one in ids]
    for end in (0, 4, 5):
        expected = score_positive(texts[0][:end]) - mean
        assert tables[0][end, 0].item() == pytest.approx(expected, abs=1e-6)
    assert not tables[0][:, 1].any()


def test_scores_are_about_the_prompts_mean_and_a_prompts_half_is_its_own():
    def made(key):
        scores = torch.tensor([[[1.0]], [[3.0]]])
        group = PromptGroup(
            key, "s", [5], [[3], [4]], scores, prefix_scorers=(None,), conversation=()
        )
        rows = [
            CachedResponse(
                torch.zeros(0), torch.ones(1, H), *[torch.zeros(1, 2)] * 2, torch.zeros(1)
            )
        ] * 2
        return critic_prompt(group, rows, [torch.zeros(1, 1)] * 2)

    assert made("a").y.flatten().tolist() == [-1.0, 1.0]
    assert {made(str(n)).half for n in range(20)} == {0, 1}
    assert made("a").half == made("a").half
    assert tuple(sorted(token_credit.PENALTIES)) == token_credit.PENALTIES
