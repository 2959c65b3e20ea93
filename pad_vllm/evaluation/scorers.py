"""Named scorers of text, higher is more of it: text in, one number out. The preferences' ground truth.

    positive  VADER compound sentiment, mean over sentences (vaderSentiment; Hutto and Gilbert 2014)
    brief     minus the number of words
    simple    minus the Coleman-Liau grade: letters and sentences per 100 words (textstat)

They know nothing of models, prompts or tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

Scorer = Callable[[str], float]

_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def positive(text: str) -> float:
    """Mean VADER compound score of the sentences, -1 to 1; 0 for empty text."""
    sentences = [s for s in _SENTENCE.findall(text) if any(c.isalpha() for c in s)]
    if not sentences:
        return 0.0
    return sum(_vader().polarity_scores(s)["compound"] for s in sentences) / len(sentences)


def brief(text: str) -> float:
    """Minus the number of white-space separated words."""
    return -float(len(text.split()))


def simple(text: str) -> float:
    """Minus the Coleman-Liau grade (school years), kept in 0..25; 0 for text without words."""
    import textstat

    if not any(c.isalpha() for c in text):
        return 0.0
    return -min(max(float(textstat.coleman_liau_index(text)), 0.0), 25.0)


SCORERS: dict[str, Scorer] = {"positive": positive, "brief": brief, "simple": simple}

WHOLE = frozenset({"brief"})
"""Scorers that say nothing of an unfinished answer."""


def score(text: str, names: tuple[str, ...]) -> list[float]:
    """One number a name, in the order given; an unknown name is a ValueError naming the known ones."""
    unknown = [name for name in names if name not in SCORERS]
    if unknown:
        raise ValueError(f"scorer {unknown[0]!r} is not known; use one of {', '.join(SCORERS)}")
    return [SCORERS[name](text) for name in names]
