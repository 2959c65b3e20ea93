"""Metrics of each condition's answers, compared with the unguided ones.

In: answers by condition, DimensionJudges. Out: a record per condition, plain JSON: share of prompts won, by
judge, and the way, with 95% intervals; derailed starts; repeated 4-grams; perplexity, relevance and words
relative to the unguided answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pad_vllm.evaluation.sentence_embeddings import embed, relevance
from pad_vllm.evaluation.win_rates_and_fluency import (
    mean_repeated,
    perplexity,
    value_and_interval_text,
    win_rate_interval,
    wins_by_prompt,
)
from pad_vllm.steering.comparison_conditions import Condition
from pad_vllm.steering.dimension_judges import DimensionJudges
from pad_vllm.steering.guided_answers import Conversations, DrawnAnswer
from pad_vllm.steering.way import AnswerReading, way_and_interval

ConditionRecord = dict[str, Any]
"""Metrics of one condition, as result files store them."""


class ConditionMetrics:
    """Computes the records of all conditions under which some prompts were answered."""

    def __init__(self, judges: DimensionJudges, prompts: Conversations) -> None:
        self.judges, self.prompts = judges, prompts
        self.prompt_embeddings = embed([prompt[-1].content for prompt in prompts])

    def records(
        self, conditions: Sequence[Condition], answers: Sequence[Sequence[DrawnAnswer]]
    ) -> list[ConditionRecord]:
        """One record per condition, in order.

        conditions: the first is the unguided one, which the others are compared with. answers:
        [condition][prompt].
        """
        measured = [_MeasuredAnswers(self, *pair) for pair in zip(conditions, answers, strict=True)]
        # Dimension -> the answers to its instruction without guidance.
        instructed = {
            next(iter(condition.aims)): row
            for condition, row in zip(conditions, measured, strict=True)
            if condition.instruction and not condition.weights
        }
        return [
            self._record(condition, row, measured[0], instructed)
            for condition, row in zip(conditions, measured, strict=True)
        ]

    def _record(
        self,
        condition: Condition,
        measured: _MeasuredAnswers,
        plain: _MeasuredAnswers,
        instructed: Mapping[str, _MeasuredAnswers],
    ) -> ConditionRecord:
        record: ConditionRecord = {
            "name": condition.name,
            "beta": condition.beta,
            "weights": dict(condition.weights),
            "aims": dict(condition.aims),
            "wins": {d: _wins(measured.scores(d), plain.scores(d)) for d in condition.aims},
            "repeated": round(measured.repeated, 4),
            "repeated_more": round(measured.repeated - plain.repeated, 4),
            "perplexity": round(measured.perplexity / plain.perplexity, 3),
            "relevance": round(measured.relevance / plain.relevance, 3),
            "words": round(measured.words / max(plain.words, 1e-9), 3),
        }
        record |= _ways(condition.aims, measured, plain, instructed)
        first_aim = next(iter(condition.aims), "")
        prompting = instructed.get(first_aim) if condition.weights else None
        if condition.instruction and prompting is not None:
            record["wins_over_told"] = {
                d: _wins(measured.scores(d), prompting.scores(d)) for d in condition.aims
            }
        return record


def _ways(
    aims: Iterable[str],
    measured: _MeasuredAnswers,
    plain: _MeasuredAnswers,
    instructed: Mapping[str, _MeasuredAnswers],
) -> dict[str, Any]:
    """The way by dimension, and derailed starts, of a condition that aims at dimensions with a teacher."""
    ways, derailed = {}, []
    for dimension in aims:
        reading, of_plain = measured.reading(dimension), plain.reading(dimension)
        of_told = instructed[dimension].reading(dimension) if dimension in instructed else None
        if reading is not None and of_plain is not None and of_told is not None:
            ways[dimension] = way_and_interval(of_plain, of_told, reading)
            derailed.append(reading.derailed())
    # Of two aims either's base may begin like that.
    return {"way": ways} | ({"derailed": round(min(derailed), 4)} if derailed else {})


class _MeasuredAnswers:
    """One condition's answers with their losses, embeddings and averages; scores are computed once."""

    def __init__(
        self, metrics: ConditionMetrics, condition: Condition, answers: Sequence[DrawnAnswer]
    ) -> None:
        self.metrics, self.answers, self.instruction = metrics, answers, condition.instruction
        self.losses = metrics.judges.losses(
            metrics.prompts, answers, drawn_with=condition.instruction
        )
        texts = [answer.text for answer in answers]
        self.perplexity = perplexity(self.losses)
        self.repeated = mean_repeated(texts)
        self.words = sum(len(text.split()) for text in texts) / len(texts)
        self.embeddings = embed(texts)
        cosines = relevance(metrics.prompt_embeddings, self.embeddings)
        self.relevance = sum(cosines) / len(cosines)
        self._scores: dict[str, dict[str, list[float]]] = {}
        self._readings: dict[str, AnswerReading] = {}

    def scores(self, dimension: str) -> dict[str, list[float]]:
        """Judge -> score of each answer."""
        if dimension not in self._scores:
            texts, reading = [answer.text for answer in self.answers], self.reading(dimension)
            self._scores[dimension] = self.metrics.judges.scores(
                dimension, texts, self.embeddings, reading
            )
        return self._scores[dimension]

    def reading(self, dimension: str) -> AnswerReading | None:
        """What the base and the teacher of a dimension make of the answers; None: it has no teacher."""
        judges = self.metrics.judges
        if dimension not in judges.instructions:
            return None
        if dimension not in self._readings:
            instruction = judges.instructions[dimension]
            told = judges.losses(self.metrics.prompts, self.answers, self.instruction, instruction)
            self._readings[dimension] = AnswerReading(self.losses, told)
        return self._readings[dimension]


def _wins(
    scores: Mapping[str, Sequence[float]], against: Mapping[str, Sequence[float]]
) -> dict[str, list[float]]:
    """Judge -> [share of prompts won, low and high end of its 95% interval]."""
    wins = {}
    for judge, values in scores.items():
        won = wins_by_prompt(values, against[judge])
        wins[judge] = [round(x, 4) for x in (sum(won) / len(won), *win_rate_interval(won))]
    return wins


def metrics_table(
    records: Sequence[ConditionRecord], taught: Mapping[str, Collection[str]] | None = None
) -> list[str]:
    """Lines of a Markdown table with a row per condition.

    Args:
        records: Of `ConditionMetrics`.
        taught: Dimension -> judges that taught it; they are marked.
    """
    lines = [
        (
            "| condition | beta | wins in percent, by judge | way | derailed | repeated | perplexity "
            "| relevance | words |"
        ),
        "| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for record in records:
        beta = f"{record['beta']:g}" if record["beta"] else ""
        ratios = (f"{record[key]:.2f}x" for key in ("perplexity", "relevance", "words"))
        shares = [_percent(record.get("derailed")), _percent(record["repeated"])]
        wins = _wins_cell(record, taught or {})
        cells = [record["name"], beta, wins, _way_cell(record), *shares, *ratios]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _way_cell(record: ConditionRecord) -> str:
    several = len(record["aims"]) > 1
    return "; ".join(
        (f"{dimension}: " if several else "") + value_and_interval_text(way)
        for dimension, way in record["way"].items()
    )


def _wins_cell(record: ConditionRecord, taught: Mapping[str, Collection[str]]) -> str:
    several = len(record["aims"]) > 1
    parts = []
    for dimension, wins in record["wins"].items():
        by_judge = ", ".join(
            f"{judge}{'*' if judge in taught.get(dimension, ()) else ''} {100 * rate[0]:.0f}"
            for judge, rate in wins.items()
        )
        parts.append(f"{dimension}: {by_judge}" if several else by_judge)
    for wins in record.get("wins_over_told", {}).values():
        by_judge = ", ".join(
            f"{judge} {100 * rate[0]:.0f} ({100 * rate[1]:.0f} to {100 * rate[2]:.0f})"
            for judge, rate in wins.items()
        )
        parts.append(f"over told: {by_judge}")
    return "; ".join(parts)
