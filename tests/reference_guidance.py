"""The rule for one row in plain Python: what guidance.py, its kernels and the engines are held to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NEG_INF = float("-inf")


def guide_row(
    z_B: Tensor,
    reward: Tensor,
    beta: float,
    top_k: int,
    answer: Sequence[int] = (),
    no_repeat: int = 0,
    min_p: float = 0.0,
    eos_token_ids: Sequence[int] = (),
) -> Tensor:
    """`guidance.guide` with both guards, for one row.

    Args:
        z_B: [V] float32, the base's logits; -inf for tokens that a grammar mask forbids.
        reward: [V] float32, R_w of every token.
        beta: Strength.
        top_k: Candidates.
        answer: Token ids so far.
        no_repeat: Length of the n-grams that may not repeat; 0 for no such guard.
        min_p: Least probability of a candidate, as a share of the best one's; 0 for no such guard.
        eos_token_ids: Ids that end an answer, which `min_p` does not guard.

    Returns:
        [V] float32 scores, -inf for tokens that are no candidates; z_B where a score is not finite.
    """
    best = z_B.topk(min(top_k, len(z_B))).indices.tolist()
    legal = [token for token in best if z_B[token] != NEG_INF]
    bonus = beta * reward
    p = z_B[legal].double().softmax(-1)
    mean = float((p * bonus[legal].double()).sum())
    grams = {tuple(answer[i : i + no_repeat]) for i in range(len(answer) - no_repeat + 1)}
    last = tuple(answer[len(answer) - no_repeat + 1 :])
    for token in legal:
        repeats = no_repeat and (*last, token) in grams
        unlikely = (
            token not in eos_token_ids and z_B[token] < z_B[legal[0]] + torch.tensor(min_p).log()
        )
        if repeats or unlikely:
            bonus[token] = min(float(bonus[token]), mean)
    scores = torch.full_like(z_B, NEG_INF)
    for token in legal:
        scores[token] = z_B[token] + bonus[token]
        if not scores[token].isfinite():
            return z_B.clone()
    return scores
