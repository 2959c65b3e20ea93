"""What answers are worth beside others: win rates; and whether they are still text: repetition, perplexity.

In: scores; texts; token ids and a Transformers model. Out: plain numbers. Knows nothing of preferences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence


def win_rate(scores: Sequence[float], against: Sequence[float]) -> float:
    """Share of prompts on which `scores` is higher, ties counting half."""
    wins = wins_by_prompt(scores, against)
    return sum(wins) / len(wins)


def repeated_ngram_share(text: str, n: int = 4) -> float:
    """Share of the text's word n-grams that stood in it before, 0 to 1; 0 where it has none."""
    words = text.split()
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@torch.no_grad()
def answer_losses(
    model: Any, pairs: Sequence[tuple[list[int], list[int]]], batch: int = 16
) -> list[tuple[float, int]]:
    """(summed negative log-likelihood, tokens) of each answer after its prompt, both as token ids."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    losses: dict[int, tuple[float, int]] = {}
    for start in range(0, len(order), batch):
        chunk = order[start : start + batch]
        ids = [torch.tensor(pairs[i][0] + pairs[i][1], device=model.device) for i in chunk]
        hidden = model.model(input_ids=pad_sequence(ids, batch_first=True)).last_hidden_state
        for row, i in enumerate(chunk):
            prompt, answer = pairs[i]
            first = len(prompt) - 1
            logits = model.lm_head(hidden[row, first : first + len(answer)]).float()
            target = torch.tensor(answer, dtype=torch.long, device=logits.device)
            loss = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
            losses[i] = (loss.item(), len(answer))
    return [losses[i] for i in range(len(pairs))]


def perplexity(losses: Sequence[tuple[float, int]]) -> float:
    """exp of the mean loss a token over all answers."""
    tokens = sum(count for _, count in losses)
    return math.exp(sum(loss for loss, _ in losses) / max(tokens, 1))


def wins_by_prompt(scores: Sequence[float], against: Sequence[float]) -> list[float]:
    """1 for each prompt on which `scores` is higher, 0 where lower, half for a tie."""
    return [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(scores, against, strict=True)]


def bootstrap_interval(
    values: Sequence[float], draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95% interval of the mean, by bootstrap over the prompts."""
    found = np.asarray(values)
    places = np.random.default_rng(seed).integers(0, len(found), (draws, len(found)))
    low, high = np.quantile(found[places].mean(1), (0.025, 0.975))
    return float(low), float(high)
