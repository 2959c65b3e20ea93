"""Measures of answers: win rates with intervals, repeated n-grams, perplexity.

In: scores; texts; token ids and a Transformers model. Out: plain numbers. This module knows nothing of
preferences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

START_TOKENS = 4
"""Tokens that an answer starts with: the rest follows from them."""


class AnswerLoss(NamedTuple):
    """What a model makes of one answer after its prompt."""

    nats: float
    """Summed negative log-likelihood."""

    tokens: int
    """Their number."""

    start: float = 0.0
    """Of the answer's START_TOKENS first tokens the one that the model finds least likely: its
    log-probability less that of the most likely token there; 0 is the most likely one.
    """


def win_rate(scores: Sequence[float], against: Sequence[float]) -> float:
    """Share of prompts on which `scores` is higher than `against`; a tie counts half."""
    wins = wins_by_prompt(scores, against)
    return sum(wins) / len(wins)


def repeated_ngram_share(text: str, n: int = 4) -> float:
    """Share of the text's word n-grams that occur earlier in it, 0 to 1; 0 for fewer than n words."""
    words = text.split()
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@torch.no_grad()
def answer_losses(
    model: Any, pairs: Sequence[tuple[list[int], list[int]]], batch: int = 16
) -> list[AnswerLoss]:
    """The loss of each answer after its prompt.

    Args:
        model: Transformers causal LM, with `model` (the decoder) and `lm_head`.
        pairs: (prompt, answer) as token ids.
        batch: Number of pairs in one forward pass.

    Returns:
        One per answer, in the order of `pairs`.
    """
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    losses: dict[int, AnswerLoss] = {}
    for start in range(0, len(order), batch):
        chunk = order[start : start + batch]
        ids = [torch.tensor(pairs[i][0] + pairs[i][1], device=model.device) for i in chunk]
        hidden = model.model(input_ids=pad_sequence(ids, batch_first=True)).last_hidden_state
        for row, i in enumerate(chunk):
            prompt, answer = pairs[i]
            first = len(prompt) - 1  # whose hidden state predicts the answer's first token
            logits = model.lm_head(hidden[row, first : first + len(answer)]).float()
            target = torch.tensor(answer, dtype=torch.long, device=logits.device)
            loss = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
            losses[i] = AnswerLoss(loss.item(), len(answer), _start(logits, target))
    return [losses[i] for i in range(len(pairs))]


def _start(logits: torch.Tensor, target: torch.Tensor) -> float:
    """AnswerLoss.start of an answer's tokens [n], with the logits [n, V] before each."""
    first, tokens = logits[:START_TOKENS], target[:START_TOKENS]
    gaps = first.gather(1, tokens.unsqueeze(1)).squeeze(1) - first.amax(1)
    return min(gaps.tolist(), default=0.0)


def perplexity(losses: Sequence[AnswerLoss]) -> float:
    """exp of the mean loss per token over all answers. losses: as from `answer_losses`."""
    tokens = sum(loss.tokens for loss in losses)
    return math.exp(sum(loss.nats for loss in losses) / max(tokens, 1))


def wins_by_prompt(scores: Sequence[float], against: Sequence[float]) -> list[float]:
    """1 for each prompt on which `scores` is higher than `against`, 0 where it is lower, 0.5 for a tie."""
    return [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(scores, against, strict=True)]


def bootstrap_interval(
    values: Sequence[float], draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95% interval of the mean, by bootstrap over the prompts.

    Args:
        values: One value per prompt.
        draws: Number of bootstrap samples.
        seed: Seed of the samples.

    Returns:
        (low, high).
    """
    array = np.asarray(values)
    samples = np.random.default_rng(seed).integers(0, len(array), (draws, len(array)))
    low, high = np.quantile(array[samples].mean(1), (0.025, 0.975))
    return float(low), float(high)
