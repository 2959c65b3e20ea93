"""What a condition's answers are worth beside the unguided ones, and whether they are still text.

In: answers by condition, Judges. Out: one record a condition, plain JSON: wins by judge with their 95%
intervals, repeated 4-grams, perplexity, relevance and words beside the unguided answers'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pad_vllm.evaluation.sentence_embeddings import embed, relevance
from pad_vllm.evaluation.text_measures import (
    bootstrap_interval,
    perplexity,
    repeated_ngram_share,
    wins_by_prompt,
)
from pad_vllm.steering.comparison_conditions import Condition
from pad_vllm.steering.dimension_judges import DimensionJudges
from pad_vllm.steering.guided_answers import Conversations, DrawnAnswer

ConditionRecord = dict[str, Any]


class ConditionMetrics:
    """Of the answers to some prompts; the first condition is what the others are compared with."""

    def __init__(self, judges: DimensionJudges, prompts: Conversations) -> None:
        self.judges, self.prompts = judges, prompts
        self.prompt_embeddings = embed([prompt[-1].content for prompt in prompts])

    def records(
        self, conditions: Sequence[Condition], said: Sequence[Sequence[DrawnAnswer]]
    ) -> list[ConditionRecord]:
        """One a condition, in their order."""
        read = [_Read(self, *both) for both in zip(conditions, said, strict=True)]
        wished = {
            next(iter(condition.aims)): one
            for condition, one in zip(conditions, read, strict=True)
            if condition.instruction and not condition.weights
        }
        return [
            self._record(condition, one, read[0], wished)
            for condition, one in zip(conditions, read, strict=True)
        ]

    def _record(
        self, condition: Condition, read: _Read, plain: _Read, wished: Mapping[str, _Read]
    ) -> ConditionRecord:
        record: ConditionRecord = {
            "name": condition.name,
            "beta": condition.beta,
            "weights": dict(condition.weights),
            "aims": dict(condition.aims),
            "wins": {d: _wins(read.scores(d), plain.scores(d)) for d in condition.aims},
            "repeated": round(read.repeated, 4),
            "repeated_more": round(read.repeated - plain.repeated, 4),
            "perplexity": round(read.perplexity / plain.perplexity, 3),
            "relevance": round(read.relevance / plain.relevance, 3),
            "words": round(read.words / max(plain.words, 1e-9), 3),
        }
        beside = wished.get(next(iter(condition.aims), "")) if condition.weights else None
        if condition.instruction and beside is not None:
            record["wins_over_told"] = {
                d: _wins(read.scores(d), beside.scores(d)) for d in condition.aims
            }
        return record


class _Read:
    """One condition's answers, read once."""

    def __init__(
        self, figures: ConditionMetrics, condition: Condition, said: Sequence[DrawnAnswer]
    ) -> None:
        self.figures, self.said, self.asked = figures, said, condition.instruction
        self.losses = figures.judges.losses(figures.prompts, said, self.asked)
        texts = [one.text for one in said]
        self.perplexity = perplexity(self.losses)
        self.repeated = sum(map(repeated_ngram_share, texts)) / len(texts)
        self.words = sum(len(text.split()) for text in texts) / len(texts)
        self.embedded = embed(texts)
        cosines = relevance(figures.prompt_embeddings, self.embedded)
        self.relevance = sum(cosines) / len(cosines)
        self._scores: dict[str, dict[str, list[float]]] = {}

    def scores(self, dimension: str) -> dict[str, list[float]]:
        """By judge."""
        if dimension not in self._scores:
            judges, prompts = self.figures.judges, self.figures.prompts
            read = self.said, self.asked, self.losses, self.embedded
            self._scores[dimension] = judges.scores(dimension, prompts, *read)
        return self._scores[dimension]


def _wins(
    scores: Mapping[str, Sequence[float]], against: Mapping[str, Sequence[float]]
) -> dict[str, list[float]]:
    """Judge -> [share of prompts won, and its 95% interval]."""
    found = {}
    for judge, values in scores.items():
        won = wins_by_prompt(values, against[judge])
        found[judge] = [round(x, 4) for x in (sum(won) / len(won), *bootstrap_interval(won))]
    return found


def metrics_table(records: Sequence[ConditionRecord]) -> list[str]:
    """Markdown, a line a condition."""
    lines = [
        "| condition | beta | wins in percent, by judge | repeated | perplexity | relevance | words |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for r in records:
        cells = [r["name"], f"{r['beta']:g}" if r["weights"] else "", _cell(r)]
        cells += [
            f"{r['repeated']:.1%}",
            *(f"{r[n]:.2f}x" for n in ("perplexity", "relevance", "words")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(record: ConditionRecord) -> str:
    many = len(record["aims"]) > 1
    parts = []
    for dimension, wins in record["wins"].items():
        said = ", ".join(f"{judge} {100 * rate[0]:.0f}" for judge, rate in wins.items())
        parts.append(f"{dimension}: {said}" if many else said)
    for wins in record.get("wins_over_told", {}).values():
        over = ", ".join(
            f"{judge} {100 * rate[0]:.0f} ({100 * rate[1]:.0f} to {100 * rate[2]:.0f})"
            for judge, rate in wins.items()
        )
        parts.append(f"over told: {over}")
    return "; ".join(parts)
