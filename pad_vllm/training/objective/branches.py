"""Pairs of next tokens: what would the text have scored, had another candidate been taken?

Two continuations of one beginning by one token are a preference pair like any other, and the one that
says which token was at fault. In: responses with their candidates. Out: places and scores. Only scorers
that can judge unfinished text take part; on the other dimensions the candidates are equals.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pad_vllm.evaluation.scorers import SCORERS

WINDOW = 24
"""Tokens before the candidate that a scorer reads: a sentence or two."""

TokenScorer = Callable[[list[int]], list[float]]


def scored_by(tokenizer: Any, names: tuple[str | None, ...]) -> TokenScorer:
    """Token ids -> one score a dimension, 0 where no scorer is named."""

    def scored(ids: list[int]) -> list[float]:
        text = tokenizer.decode(ids, skip_special_tokens=True)
        return [SCORERS[name](text) if name else 0.0 for name in names]

    return scored


def branches(
    response_ids: list[int], candidates: Tensor, scored: TokenScorer, share: float, seed: int
) -> dict[str, Tensor]:
    """At a random `share` of the tokens, the candidates' scores about their mean.

    response_ids n tokens, candidates [n, K] -> {"at": [m], "scores": [m, K, D]}. The draw depends on
    seed and tokens alone. Places where all candidates score the same are left out.
    """
    rng = random.Random(f"{seed} {response_ids}")
    at, rows = [], []
    for t in range(2, len(response_ids)):
        if rng.random() >= share:
            continue
        before = response_ids[max(0, t - WINDOW) : t]
        scores = torch.tensor([scored([*before, a]) for a in candidates[t].tolist()])
        if (scores != scores[0]).any():
            at.append(t)
            rows.append(scores - scores.mean(0))
    width = len(scored(response_ids[:2]))
    empty = torch.zeros(0, candidates.shape[1], width)
    return {
        "at": torch.tensor(at, dtype=torch.long),
        "scores": torch.stack(rows) if rows else empty,
    }


def spread(scores: Tensor) -> Tensor:
    """Mean size of a difference, over candidates that differ: [m, K, D] -> [D]."""
    flat = scores.flatten(0, 1).abs()
    return (flat.sum(0) / (flat > 1e-6).sum(0).clamp_min(1)).clamp_min(1e-6)
