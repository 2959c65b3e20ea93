"""Scorers of text by its words: text in, one number out, higher is more of the dimension.

Training data is scored by

    positive  VADER compound sentiment, mean over sentences (vaderSentiment; Hutto and Gilbert 2014)
    brief     minus the number of words
    simple    minus the Coleman-Liau grade: letters and sentences per 100 words (textstat)
    personal  first and second person pronouns per 100 words: speaks of me, us and you
    clean     minus the profane words per 100 words (pyobscenity)

and answers are also judged by these, which score no training data of the shipped adapters:

    polarity  TextBlob's polarity (its pattern lexicon)
    afinn     AFINN valence per word (Nielsen 2011)
    flesch    Flesch reading ease (syllables by pyphen)
    common    mean Zipf frequency of the words (wordfreq; Speer 2022)

A new scorer is a function here and its name in LEXICAL_SCORERS. All but brief are for English.
This module knows nothing of models, prompts or tokens.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Callable
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any

TextScorer = Callable[[str], float]

_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")  # you'll is one word, with either quote
_PRONOUN = re.compile(
    "(i|me|my|mine|myself|we|us|our|ours|ourselves|you|your|yours|yourself|yourselves)('.*)?",
    re.IGNORECASE,
)


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def score_positive(text: str) -> float:
    """Mean VADER compound score of the sentences, -1 to 1; 0 for empty text."""
    sentences = [s for s in _SENTENCE.findall(text) if any(c.isalpha() for c in s)]
    if not sentences:
        return 0.0
    return sum(map(_compound, sentences)) / len(sentences)


@lru_cache(100_000)
def _compound(sentence: str) -> float:
    """Cached: the beginnings of one answer are scored one by one, and share all sentences but the last."""
    return float(_vader().polarity_scores(sentence)["compound"])


def score_brief(text: str) -> float:
    """Minus the number of white-space separated words."""
    return -float(len(text.split()))


def score_simple(text: str) -> float:
    """Minus the Coleman-Liau grade (school years), clamped to 0..25; 0 for text without words."""
    import textstat

    if not any(c.isalpha() for c in text):
        return 0.0
    return -min(max(float(textstat.coleman_liau_index(text)), 0.0), 25.0)


def score_personal(text: str) -> float:
    """First and second person pronouns per 100 words, contractions included; 0 without words."""
    words = _WORD.findall(text)
    return 100.0 * sum(map(_is_pronoun, words)) / len(words) if words else 0.0


def _is_pronoun(word: str) -> bool:
    if word in {"US", "i"}:  # the country; "i.e." and items of a list
        return False
    return _PRONOUN.fullmatch(word.replace("\u2019", "'")) is not None


def score_clean(text: str) -> float:
    """Minus the profane words per 100 words, disguised ones (sh1t, f*ck) included; 0 without words."""
    if not (count := len(_WORD.findall(text))):
        return 0.0
    words = [word.strip(".,;:!?\"'()[]").lower() for word in text.split()]
    if len(_PROFANITY_CACHE) > _PROFANITY_CACHE_SIZE:
        _PROFANITY_CACHE.clear()
    _cache_profanity([word for word in dict.fromkeys(words) if word not in _PROFANITY_CACHE])
    return 0.0 - 100.0 * sum(_PROFANITY_CACHE[word] for word in words) / count


_PROFANITY_CACHE_SIZE = 100_000
_PROFANITY_CACHE: dict[str, bool] = {}
"""Word -> whether it is profane; about _PROFANITY_CACHE_SIZE words. The matcher has a hundred patterns and
takes milliseconds per call, and texts repeat words.
"""


def _cache_profanity(words: list[str]) -> None:
    """Looks up words that are not in the cache, all in one call of the matcher."""
    import pyobscenity

    if not words:
        return
    starts = list(accumulate((len(word) + 1 for word in words[:-1]), initial=0))
    _PROFANITY_CACHE.update(dict.fromkeys(words, False))
    for match in pyobscenity.find_matches("\n".join(words), include_metadata=False):
        _PROFANITY_CACHE[words[bisect(starts, match.start_index) - 1]] = True


def score_polarity(text: str) -> float:
    """TextBlob's polarity, -1 to 1; 0 for text without words in its lexicon."""
    from textblob import TextBlob

    return float(TextBlob(text).sentiment.polarity)


@cache
def _afinn() -> Any:
    from afinn import Afinn

    return Afinn()


def score_afinn(text: str) -> float:
    """AFINN valence per word; 0 without words."""
    words = len(_WORD.findall(text))
    return float(_afinn().score(text)) / words if words else 0.0


@cache
def _hyphens() -> Any:
    from pyphen import Pyphen

    return Pyphen(lang="en_US")


def score_flesch(text: str) -> float:
    """Flesch reading ease, clamped to -100..200; 0 for text without words.

    Syllables are counted by hyphenation, because textstat's own count needs a word list from the network.
    """
    words = _WORD.findall(text)
    if not words:
        return 0.0
    sentences = sum(any(c.isalpha() for c in part) for part in _SENTENCE.findall(text))
    syllables = sum(len(_hyphens().positions(word)) + 1 for word in words)
    ease = 206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words)
    return min(max(ease, -100.0), 200.0)


def score_common(text: str) -> float:
    """Mean Zipf frequency of the words, 0 to 8: 3 is once in a million words; 0 without words."""
    from wordfreq import zipf_frequency

    words = _WORD.findall(text)
    return sum(zipf_frequency(word, "en") for word in words) / len(words) if words else 0.0


LEXICAL_SCORERS: dict[str, TextScorer] = {
    "positive": score_positive,
    "brief": score_brief,
    "simple": score_simple,
    "personal": score_personal,
    "clean": score_clean,
    "polarity": score_polarity,
    "afinn": score_afinn,
    "flesch": score_flesch,
    "common": score_common,
}

LEXICAL_JUDGES: dict[str, tuple[str, ...]] = {
    "positive": ("positive", "polarity", "afinn"),
    "brief": ("brief",),
    "simple": ("simple", "flesch", "common"),
    "personal": ("personal",),
}
"""Dimension -> the scorers that judge it. If the dimension was trained on one of them, only the others are
independent judges.
"""

COMPLETE_ONLY = frozenset({"brief"})
"""Names of scorers whose scores of unfinished answers mean nothing."""


def lexical_scores(text: str, names: tuple[str, ...]) -> list[float]:
    """The text's score by each named scorer, in order. Raises ValueError, which lists the known names."""
    unknown = [name for name in names if name not in LEXICAL_SCORERS]
    if unknown:
        raise ValueError(
            f"scorer {unknown[0]!r} is not known; use one of {', '.join(LEXICAL_SCORERS)}"
        )
    return [LEXICAL_SCORERS[name](text) for name in names]
