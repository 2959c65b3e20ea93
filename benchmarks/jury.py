"""Judges that trained nothing, for scripts that ask a question of an adapter's answers.

In: an adapter's config, prompts, answers by condition, the first of which the others are compared with. Out:
a Verdict a condition: how far each prompt was won, the mean over a dimension's judges, and whether the text
is still text. The told base, which taught, does not judge, nor does the scorer that made a dimension's data.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pad_vllm.adapter.manifest import AdapterConfig, training_sections
from pad_vllm.evaluation.lexical_scorers import LEXICAL_JUDGES
from pad_vllm.evaluation.sentence_embeddings import embed
from pad_vllm.evaluation.text_measures import (
    bootstrap_interval,
    perplexity,
    repeated_ngram_share,
    wins_by_prompt,
)
from pad_vllm.steering import comparison_conditions, dimension_judges
from pad_vllm.steering.guided_answers import DrawnAnswer, known_losses

Wins = list[float]
"""Of a dimension, by prompt: 1 where the answer has more of it than the other, 0 where less, or between."""


@dataclass(frozen=True)
class Verdict:
    """On one condition's answers, beside the first condition's."""

    wins: Mapping[str, Wins]  # by dimension
    perplexity: float  # under the base that was told nothing, times the other's
    repeated: float  # 4-grams, share more than the other's


@dataclass(frozen=True)
class Jury:
    """judge: sentences left out, judges of meaning by dimension. scored: learned from their own scorer."""

    judge: dimension_judges.DimensionJudges
    scored: frozenset[str]

    @classmethod
    def of(cls, config: AdapterConfig, said: Sequence[Sequence[DrawnAnswer]]) -> Jury:
        """said: unguided, then told each of the adapter's sentences, to prompts that are not judged."""
        leanings = dimension_judges.meaning_judges_from_answers(
            comparison_conditions.instructions_of(config), said
        )
        return cls(
            dimension_judges.DimensionJudges(None, None, {}, leanings), learned_from_scores(config)
        )

    @property
    def accuracies(self) -> dict[str, float]:
        """Of the judges of meaning, on answers they were not fitted on."""
        return dimension_judges.judge_accuracies(self.judge.classifiers)

    def verdicts(
        self, dimensions: Sequence[str], said: Sequence[Sequence[DrawnAnswer]]
    ) -> list[Verdict]:
        """One a condition."""
        read = [_Read(self, dimensions, row) for row in said]
        return [one.beside(read[0]) for one in read]

    def scores(
        self, dimension: str, said: Sequence[DrawnAnswer], embedded: np.ndarray
    ) -> dict[str, list[float]]:
        """Judge -> a score of each answer."""
        found = self.judge.scores(dimension, (), said, "", (), embedded)
        return {judge: scores for judge, scores in found.items() if judge in self.names(dimension)}

    def names(self, dimension: str) -> list[str]:
        """Who judges it."""
        beside = [
            name
            for name in LEXICAL_JUDGES.get(dimension, ())
            if name not in self.scored & {dimension}
        ]
        return beside + [dimension_judges.MEANING_JUDGE] * (dimension in self.judge.classifiers)


class _Read:
    def __init__(self, jury: Jury, dimensions: Sequence[str], said: Sequence[DrawnAnswer]) -> None:
        embedded = embed([one.text for one in said])
        self.scores = {name: jury.scores(name, said, embedded) for name in dimensions}
        self.perplexity = perplexity(known_losses(said))
        self.repeated = statistics.mean(repeated_ngram_share(one.text) for one in said)

    def beside(self, other: _Read) -> Verdict:
        wins = {
            name: _mean_outcomes(found, other.scores[name]) for name, found in self.scores.items()
        }
        more = self.repeated - other.repeated
        return Verdict(wins, self.perplexity / other.perplexity, more)


def _mean_outcomes(
    scores: Mapping[str, Sequence[float]], against: Mapping[str, Sequence[float]]
) -> Wins:
    """Over the judges."""
    each = [wins_by_prompt(values, against[judge]) for judge, values in scores.items()]
    return [statistics.mean(column) for column in zip(*each, strict=True)]


def learned_from_scores(config: AdapterConfig) -> frozenset[str]:
    """Dimensions of a part that no sentence taught: scorers of their names made its data."""
    parts = [part for part in training_sections(config) if "taught" not in part]
    return frozenset(name for part in parts for name in part.get("dimensions") or config.dimensions)


def wished(wins: Wins, sign: float) -> Wins:
    """The same, won in the direction that was asked for."""
    return wins if sign >= 0 else [1 - x for x in wins]


def share(values: Sequence[float]) -> list[float]:
    """[mean, and its 95% interval by bootstrap]."""
    return [round(x, 3) for x in (statistics.mean(values), *bootstrap_interval(values))]


def shown(found: Sequence[float]) -> str:
    """`share` in percent."""
    mean, low, high = (100 * x for x in found)
    return f"{mean:.0f} ({low:.0f} to {high:.0f})"


def text(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What several conditions cost, on average."""
    return {
        "perplexity": round(statistics.mean(one.perplexity for one in verdicts), 3),
        "repeated_more": round(statistics.mean(one.repeated for one in verdicts), 4),
    }
