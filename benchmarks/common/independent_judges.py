"""Judges that trained nothing, for scripts that ask how well an adapter's answers follow a preference.

In: an adapter's config, prompts, answers by condition, the first of which the others are compared with. Out:
a Verdict a condition: how far each prompt was won, the mean over a dimension's judges, and whether the text
is still text. Two judges are left out: the instructed base, which is the teacher of distilled dimensions, and
the scorer that made a dimension's training data.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pad_vllm.adapter.manifest import AdapterConfig
from pad_vllm.evaluation.lexical_scorers import LEXICAL_JUDGES
from pad_vllm.evaluation.sentence_embeddings import embed
from pad_vllm.evaluation.win_rates_and_fluency import (
    mean_repeated,
    perplexity,
    win_rate_interval,
    wins_by_prompt,
)
from pad_vllm.steering import comparison_conditions, dimension_judges
from pad_vllm.steering.guided_answers import DrawnAnswer, known_losses
from pad_vllm.steering.training_record import judges_that_taught

Wins = list[float]
"""Of one dimension, by prompt: 1 where the answer has more of it than the first condition's answer, 0 where
it has less, between where judges disagree or see a tie.
"""


@dataclass(frozen=True)
class Verdict:
    """One condition's answers compared with the first condition's."""

    wins: Mapping[str, Wins]
    """Dimension -> wins."""

    perplexity: float
    """Of the answers under the base without an instruction, over the first condition's."""

    repeated: float
    """Share of repeated 4-grams, less the first condition's."""


@dataclass(frozen=True)
class IndependentJudges:
    """Scorers of words and classifiers of meaning that no dimension was trained on."""

    judges: dimension_judges.DimensionJudges
    """Without model and instructions; the classifiers judge the meaning of answers."""

    taught: Mapping[str, frozenset[str]]
    """Dimension -> judges that taught it, which do not judge it here."""

    @classmethod
    def from_answers(
        cls, config: AdapterConfig, answers: Sequence[Sequence[DrawnAnswer]]
    ) -> IndependentJudges:
        """Fits the classifiers; answers: unguided, then under each of the adapter's instructions, to prompts
        that are not judged.
        """
        classifiers = dimension_judges.meaning_judges_from_answers(
            comparison_conditions.instructions_of(config), answers
        )
        judges = dimension_judges.DimensionJudges(None, None, {}, classifiers)
        return cls(judges, judges_that_taught(config))

    @property
    def accuracies(self) -> dict[str, float]:
        """Dimension -> accuracy of its classifier on answers that it was not fitted on."""
        return dimension_judges.judge_accuracies(self.judges.classifiers)

    def verdicts(
        self, dimensions: Sequence[str], answers: Sequence[Sequence[DrawnAnswer]]
    ) -> list[Verdict]:
        """One verdict a condition; answers: [condition][prompt]."""
        judged = [_JudgedAnswers(self, dimensions, row) for row in answers]
        return [condition.compared_with(judged[0]) for condition in judged]

    def scores(
        self, dimension: str, answers: Sequence[DrawnAnswer], embedded: np.ndarray
    ) -> dict[str, list[float]]:
        """Scores by each judge of a dimension.

        Args:
            dimension: Name of the dimension.
            answers: One answer a prompt.
            embedded: [N, E], their sentence embeddings.

        Returns:
            Judge -> a score of each answer.
        """
        # Without a reading the instructed base is no judge.
        scores = self.judges.scores(dimension, [answer.text for answer in answers], embedded)
        names = self.judge_names(dimension)
        return {judge: values for judge, values in scores.items() if judge in names}

    def judge_names(self, dimension: str) -> list[str]:
        """The judges of a dimension."""
        taught = self.taught.get(dimension, ())
        lexical = [name for name in LEXICAL_JUDGES.get(dimension, ()) if name not in taught]
        has_classifier = dimension in self.judges.classifiers
        return lexical + [dimension_judges.MEANING_JUDGE] * has_classifier


class _JudgedAnswers:
    """One condition's answers, scored once."""

    def __init__(
        self,
        judges: IndependentJudges,
        dimensions: Sequence[str],
        answers: Sequence[DrawnAnswer],
    ) -> None:
        embedded = embed([answer.text for answer in answers])
        self.scores = {name: judges.scores(name, answers, embedded) for name in dimensions}
        self.perplexity = perplexity(known_losses(answers))
        self.repeated = mean_repeated([answer.text for answer in answers])

    def compared_with(self, other: _JudgedAnswers) -> Verdict:
        wins = {
            name: _mean_over_judges(scores, other.scores[name])
            for name, scores in self.scores.items()
        }
        more_repeated = self.repeated - other.repeated
        return Verdict(wins, self.perplexity / other.perplexity, more_repeated)


def _mean_over_judges(
    scores: Mapping[str, Sequence[float]], other_scores: Mapping[str, Sequence[float]]
) -> Wins:
    by_judge = [wins_by_prompt(values, other_scores[judge]) for judge, values in scores.items()]
    return mean_by_prompt(by_judge)


def wins_in_direction(wins: Wins, sign: float) -> Wins:
    """Wins in the direction that was requested: for a negative sign less of the dimension wins."""
    return wins if sign >= 0 else [1 - x for x in wins]


def mean_by_prompt(wins: Sequence[Sequence[float]]) -> list[float]:
    """Mean over several rows of wins, prompt by prompt: answers to one prompt are not independent."""
    return [statistics.mean(column) for column in zip(*wins, strict=True)]


def win_rate_and_interval(wins: Sequence[float]) -> list[float]:
    """[mean of the wins by prompt, low, high], with the mean's 95% interval (`win_rate_interval`)."""
    return [round(x, 3) for x in (statistics.mean(wins), *win_rate_interval(wins))]


def percent_with_interval(share: Sequence[float]) -> str:
    """What `win_rate_and_interval` returns, in percent: "50 (25 to 75)"."""
    mean, low, high = (100 * x for x in share)
    return f"{mean:.0f} ({low:.0f} to {high:.0f})"


def text_costs(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Mean perplexity and repetition of several conditions, for a result."""
    return {
        "perplexity": round(statistics.mean(verdict.perplexity for verdict in verdicts), 3),
        "repeated_more": round(statistics.mean(verdict.repeated for verdict in verdicts), 4),
    }


def dimension_wins(verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """Of one way's verdicts by the dimension that each is to have more of: its wins, their mean, and what
    the texts cost, for a result.
    """
    wins = {name: verdict.wins[name] for name, verdict in verdicts.items()}
    return {
        "wins": {name: win_rate_and_interval(row) for name, row in wins.items()},
        "mean": win_rate_and_interval(mean_by_prompt(list(wins.values()))),
        **text_costs(list(verdicts.values())),
    }


def dimension_wins_table(
    rows: Sequence[Mapping[str, Any]],
    title: str = "wins %",
    suffix: Callable[[Mapping[str, Any], str], str] = lambda _row, _name: "",
) -> list[str]:
    """Markdown, a line for each of `dimension_wins` with its "way".

    Args:
        rows: Of a result.
        title: Of the first column.
        suffix: (row, dimension) -> what stands behind its wins.
    """
    names = list(rows[0]["wins"])
    lines = [
        f"| {title} | {' | '.join(names)} | mean | perplexity | repeated |",
        f"| --- |{' --- |' * (len(names) + 1)} ---: | ---: |",
    ]
    for row in rows:
        cells = [percent_with_interval(row["wins"][name]) + suffix(row, name) for name in names]
        cells += [percent_with_interval(row["mean"]), f"{row['perplexity']:.2f}x"]
        cells.append(f"{100 * row['repeated_more']:+.1f}")
        lines.append(f"| {row['way']} | {' | '.join(cells)} |")
    return lines
