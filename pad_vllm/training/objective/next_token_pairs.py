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

from pad_vllm.evaluation.lexical_scorers import LEXICAL_SCORERS
from pad_vllm.training.data.prompt_groups import PREFIX_LENGTHS

SCORER_WINDOW = PREFIX_LENGTHS[0]
"""Tokens before the candidate that a scorer reads: a sentence or two, as the shortest beginning, whose
spread is therefore the measure of their scores.
"""

TokenScorer = Callable[[list[int]], list[float]]


def token_scorer(tokenizer: Any, scorers: tuple[str | None, ...]) -> TokenScorer:
    """Token ids -> one score a dimension, 0 where no scorer is named."""

    def scored(ids: list[int]) -> list[float]:
        text = tokenizer.decode(ids, skip_special_tokens=True)
        return [LEXICAL_SCORERS[name](text) if name else 0.0 for name in scorers]

    return scored


def score_branches(
    response_ids: list[int], candidates: Tensor, score_tokens: TokenScorer, share: float, seed: int
) -> dict[str, Tensor]:
    """At a random `share` of the tokens, the candidates' scores about their mean, in their own units.

    response_ids n tokens, candidates [n, K] -> {"at": [m], "scores": [m, K, D]}. The draw depends on
    seed and tokens alone. Places where all candidates score the same are left out.
    """
    rng = random.Random(f"{seed} {response_ids}")
    at, rows = [], []
    for t in range(2, len(response_ids)):
        if rng.random() >= share:
            continue
        before = response_ids[max(0, t - SCORER_WINDOW) : t]
        scores = torch.tensor([score_tokens([*before, a]) for a in candidates[t].tolist()])
        if (scores != scores[0]).any():
            at.append(t)
            rows.append(scores - scores.mean(0))
    width = len(score_tokens(response_ids[:2]))
    empty = torch.zeros(0, candidates.shape[1], width)
    return {
        "at": torch.tensor(at, dtype=torch.long),
        "scores": torch.stack(rows) if rows else empty,
    }
