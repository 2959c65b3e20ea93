"""Win rates and fluency are plain arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
import torch

from pad_vllm.evaluation.win_rates_and_fluency import (
    answer_losses,
    perplexity,
    repeated_ngram_share,
    win_rate,
    win_rate_interval,
)


def test_ties_count_half():
    assert win_rate([1, 2, 3, 0], [0, 2, 4, 0]) == 0.5


def test_fifty_wins_of_fifty_leave_room_for_a_loss():
    low, high = win_rate_interval([1.0] * 50)
    assert low == pytest.approx(50 / (50 + 1.96**2), abs=1e-4)
    assert high == pytest.approx(1)
    assert win_rate_interval([0.0] * 50) == pytest.approx((1 - high, 1 - low))


def test_the_interval_without_ties_is_wilsons():
    low, high = win_rate_interval([1.0] * 30 + [0.0] * 10)
    assert (low, high) == pytest.approx((0.5981, 0.8581), abs=1e-4)


def test_an_interval_is_wide_for_few_prompts_and_holds_the_mean():
    low, high = win_rate_interval([0.0, 1.0] * 8)
    assert low < 0.4
    assert high > 0.6
    narrow = win_rate_interval([0.0, 1.0] * 200)
    assert narrow[1] - narrow[0] < high - low


def test_halves_narrow_the_interval_and_ties_alone_leave_one():
    tied, decided = win_rate_interval([0.5] * 50), win_rate_interval([0.0, 1.0] * 25)
    assert decided[0] < tied[0] < 0.5 < tied[1] < decided[1]


@pytest.mark.parametrize("prompts", [24, 50])
@pytest.mark.parametrize(
    ("chances", "judges"),
    [((0.5, 0.0), 1), ((0.9, 0.0), 1), ((0.97, 0.0), 1), ((0.5, 0.4), 1), ((0.7, 0.3), 4)],
    ids=["even", "high", "nearly always", "with ties", "mean of four judges"],
)
def test_the_interval_holds_the_true_rate_nineteen_times_in_twenty(prompts, chances, judges):
    won, tied = chances
    source = np.random.default_rng(0)
    chance = [won, tied, 1 - won - tied]
    draws = source.choice([1.0, 0.5, 0.0], p=chance, size=(2000, prompts, judges)).mean(-1)
    intervals = np.array([win_rate_interval(wins) for wins in draws.tolist()])
    rate = won + tied / 2
    held = (intervals[:, 0] <= rate) & (rate <= intervals[:, 1])
    assert 0.93 < held.mean() <= 1


def test_an_interval_of_no_prompts_is_refused():
    with pytest.raises(ValueError, match="no prompt"):
        win_rate_interval([])


def test_repetition_counts_ngrams_that_occur_earlier():
    assert repeated_ngram_share("a b c d e f g") == 0
    assert repeated_ngram_share("a b c d " * 4) == pytest.approx(1 - 4 / 13)
    assert repeated_ngram_share("too short") == 0


def test_perplexity_is_the_models_own():
    model = tiny.model("llama")
    prompt, answer = [3, 4, 5], [6, 7, 8, 9]
    loss, _ = answer_losses(model, [(prompt, answer), ([3], [4, 5])])
    logits = model(torch.tensor([prompt + answer])).logits[0, 2:-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()
    assert perplexity([loss]) == pytest.approx(math.exp(expected), rel=1e-4)
    log_p = logits.log_softmax(-1)
    least_likely = min(
        (row[token] - row.max()).item() for row, token in zip(log_p, answer, strict=True)
    )
    assert loss.start == pytest.approx(least_likely, rel=1e-4)


def test_token_ids_are_made_on_the_models_device():
    class Seen(Exception):
        pass

    class MetaModel:
        device = torch.device("meta")

        def model(self, input_ids):
            raise Seen(input_ids.device)

    with pytest.raises(Seen, match="meta"):
        answer_losses(MetaModel(), [([3], [4, 5])])
