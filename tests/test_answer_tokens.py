"""Which candidates would repeat an n-gram of the answer, and what that costs."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_vllm.answer_tokens import (
    LOOP_LENGTH,
    MAX_LOOP,
    AnswerTokens,
    loop_prices,
    repeats_ngram,
)
from pad_vllm.params import NO_REPEAT_LENGTHS


def test_a_token_that_repeats_an_ngram_is_capped():
    tokens = torch.tensor([[9, 1, 2, 3, 1, 2]])  # 9 is the prompt's
    answer = AnswerTokens(tokens, start=torch.tensor([1]), stop=torch.tensor([6]))
    ids = torch.tensor([[3, 9, 4]])
    repeats = repeats_ngram(answer, ids, torch.tensor([3]), 3)
    assert repeats.tolist() == [[True, False, False]]
    assert not repeats_ngram(answer, ids, torch.tensor([4]), 4).any()
    assert not repeats_ngram(answer, ids, torch.tensor([0]), 3).any()


def price_by_hand(answer, token, n, price):
    """The longest n-gram of the answer that the token completes again, priced."""
    longest = 0
    for end, other in enumerate(answer):
        if other == token:
            length = 1
            while (
                length < MAX_LOOP
                and end - length >= 0
                and answer[end - length] == answer[len(answer) - length]
            ):
                length += 1
            longest = max(longest, length)
    return price * max(longest - (n or LOOP_LENGTH) + 1, 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_loop_costs_the_more_the_longer_it_is(data):
    tokens = st.lists(st.integers(0, 3), min_size=0, max_size=30)
    texts = [data.draw(tokens) for _ in range(3)]
    starts = [data.draw(st.integers(0, len(text))) for text in texts]
    n = [data.draw(st.sampled_from(NO_REPEAT_LENGTHS)) for _ in texts]
    prices = [0.5, 0.0, 1.0]
    width = max(map(len, texts)) + 2
    rows = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], dtype=torch.int32)
    answer = AnswerTokens(rows, torch.tensor(starts), torch.tensor([len(t) for t in texts]))
    ids = torch.tensor([[0, 1, 2, 3]] * 3)
    found = loop_prices(
        answer, ids, torch.tensor(n), torch.tensor(prices), eos_token_ids=torch.tensor([3])
    )
    expected = [
        [
            price_by_hand(text[start:], token, length, price) if token != 3 else 0.0
            for token in range(4)
        ]
        for text, start, length, price in zip(texts, starts, n, prices, strict=True)
    ]
    assert found.tolist() == expected


def test_an_answer_without_tokens_costs_nothing():
    none = torch.zeros(1, dtype=torch.long)
    answer = AnswerTokens(torch.zeros(1, 0, dtype=torch.int32), none, none)
    ids = torch.tensor([[4, 5]])
    found = loop_prices(answer, ids, none, torch.ones(1), torch.tensor([5]))
    assert found.tolist() == [[0.0, 0.0]]
