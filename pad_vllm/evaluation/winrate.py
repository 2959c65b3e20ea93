"""How often one set of answers beats another by a scorer. Numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence


def win_rate(scores: Sequence[float], against: Sequence[float]) -> float:
    """Share of prompts on which `scores` is higher, ties counting half."""
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(scores, against, strict=True)]
    return sum(wins) / len(wins)
