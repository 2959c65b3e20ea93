"""Win rates and fluency are plain arithmetic."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from pad_vllm.evaluation.win_rates_and_fluency import (
    answer_losses,
    perplexity,
    repeated_ngram_share,
    win_rate,
)


def test_ties_count_half():
    assert win_rate([1, 2, 3, 0], [0, 2, 4, 0]) == 0.5


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
