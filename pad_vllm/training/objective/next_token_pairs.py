"""Pairs of next tokens: what would the text have scored, had another candidate been taken?

Two continuations of one prefix by one token are a preference pair like any other, and the only one that
says which token made the difference. In: responses with their candidates. Out: positions and scores. Only
scorers of unfinished text take part; on the other dimensions all candidates are equal.
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
"""Tokens before the candidate that a scorer reads: a sentence or two. As many as in the shortest prefix, so
that the spread of the scores of such prefixes is the unit of these scores, too.
"""

TokenScorer = Callable[[list[int]], list[float]]
"""Token ids -> D scores."""


def token_scorer(tokenizer: Any, scorers: tuple[str | None, ...]) -> TokenScorer:
    """A function that scores token ids by D named scorers; 0 where a name is None."""

    def score(ids: list[int]) -> list[float]:
        text = tokenizer.decode(ids, skip_special_tokens=True)
        return [LEXICAL_SCORERS[name](text) if name else 0.0 for name in scorers]

    return score


def score_branches(
    response_ids: list[int], candidates: Tensor, score_tokens: TokenScorer, share: float, seed: int
) -> dict[str, Tensor]:
    """Score the alternatives to some tokens of a response.

    Args:
        response_ids: n token ids.
        candidates: [n, K] token ids.
        score_tokens: of `token_scorer`.
        share: probability that a token is looked at. The draw depends on `seed` and the tokens alone.
        seed: the run's.

    Returns:
        {"at": [m] int64, the tokens' indices; "scores": [m, K, D], the candidates' scores less their mean, in
        the scorers' units}. Tokens whose candidates all score the same are left out.
    """
    rng = random.Random(f"{seed} {response_ids}")
    indices, rows = [], []
    for t in range(2, len(response_ids)):
        if rng.random() >= share:
            continue
        before = response_ids[max(0, t - SCORER_WINDOW) : t]
        scores = torch.tensor([score_tokens([*before, a]) for a in candidates[t].tolist()])
        if (scores != scores[0]).any():
            indices.append(t)
            rows.append(scores - scores.mean(0))
    dimensions = len(score_tokens(response_ids[:2]))
    empty = torch.zeros(0, candidates.shape[1], dimensions)
    return {
        "at": torch.tensor(indices, dtype=torch.long),
        "scores": torch.stack(rows) if rows else empty,
    }
