"""Measures of answers: win rates with intervals, repeated n-grams, perplexity.

In: scores; texts; token ids and a Transformers model. Out: plain numbers. This module knows nothing of
preferences.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

_Z = 1.959964
"""Quantile of the normal distribution that 95% intervals end at."""

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


def mean_repeated(texts: Sequence[str]) -> float:
    """Mean over the texts of `repeated_ngram_share`."""
    return statistics.mean(map(repeated_ngram_share, texts))


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


def win_rate_interval(wins: Sequence[float]) -> tuple[float, float]:
    """95% interval of a mean of wins: Wilson's, which does not end at a rate of 0 or 1 that was only seen.

        n' = n / ((v n / p(1-p) + z^2) / (n + z^2))       v: variance of the wins, p: their mean
        (p + z^2/2n' -+ z sqrt(p(1-p)/n' + z^2/4n'^2)) / (1 + z^2/n')

    Ties and means over judges vary less than wins and losses do, so they count as more prompts, n'. Without
    them v = p(1-p) and n' = n. The z^2 prompts of Wilson's own, which vary fully, keep n' finite.

    Args:
        wins: one number a prompt, from 0 to 1.

    Returns:
        (low, high).

    Raises:
        ValueError: no wins.
    """
    if not wins:
        raise ValueError("a win rate of no prompt has no interval; accepted: one prompt at least")
    count, rate = len(wins), sum(wins) / len(wins)
    binomial = rate * (1 - rate)
    squares = sum((x - rate) ** 2 for x in wins)
    share = (squares / binomial + _Z**2) / (count + _Z**2) if binomial > 0 else 1.0
    prompts = count / share
    middle = rate + _Z**2 / (2 * prompts)
    half = _Z * math.sqrt(binomial / prompts + (_Z / (2 * prompts)) ** 2)
    low, high = ((middle + sign * half) / (1 + _Z**2 / prompts) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


def value_and_interval_text(value: Sequence[float]) -> str:
    """[value, low, high] in a table's cell: "0.52 (0.41 to 0.63)"."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*value)
