"""The way: how far answers have come from plain ones to those of the base that was told the instruction.

    gap = mean over an answer's tokens of log p under the instructed base, less that under the base
    way = (gap - gap of plain answers) / (gap of told answers - gap of plain answers)

Gaps are averaged over prompts; 0 is plain answers, 1 is asking in the prompt. A win rate sees a direction;
the way sees how much of it a reader would notice. In: losses of the same prompts' answers. Out: numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pad_vllm.evaluation.win_rates_and_fluency import AnswerLoss

LEAST_START = 0.01
"""A start is derailed where one of its tokens is less likely than this share of the most likely one, under
the base and under the instructed base: neither would have begun like that.
"""

_LEAST_GAP = 1e-6
"""Nats a token by which told answers differ from plain ones at least; the way of a base that follows no
instruction at all is a large number, not an error.
"""


class AnswerReading(NamedTuple):
    """What the base and the instructed base make of answers, one to each prompt."""

    plain: Sequence[AnswerLoss]
    instructed: Sequence[AnswerLoss]

    def gaps(self) -> list[float]:
        """By prompt, in nats a token."""
        return [
            (plain.nats - instructed.nats) / max(plain.tokens, 1)
            for plain, instructed in zip(self.plain, self.instructed, strict=True)
        ]

    def derailed(self) -> float:
        """Share of the answers whose start is derailed."""
        starts = [
            max(plain.start, instructed.start)
            for plain, instructed in zip(self.plain, self.instructed, strict=True)
        ]
        return sum(start < np.log(LEAST_START) for start in starts) / len(starts)


def way_and_interval(
    plain: AnswerReading, told: AnswerReading, answers: AnswerReading, draws: int = 2000
) -> list[float]:
    """[way, low, high], rounded: the answers' way, with its 95% interval by bootstrap over the prompts.

    Args:
        plain: Of the unguided answers.
        told: Of the answers with the instruction in the prompt.
        answers: Of those that are measured.
        draws: Number of bootstrap samples.
    """
    gaps = np.array([plain.gaps(), told.gaps(), answers.gaps()])  # [3, prompts]
    samples = np.random.default_rng(0).integers(gaps.shape[1], size=(draws, gaps.shape[1]))
    low, high = np.quantile(_way(gaps[:, samples].mean(-1)), (0.025, 0.975))
    return [round(float(x), 3) for x in (_way(gaps.mean(-1)), low, high)]


def _way(gaps: np.ndarray) -> np.ndarray:
    """Of mean gaps [3, ...] of plain, told and measured answers -> [...]."""
    plain, told, measured = gaps
    return (measured - plain) / np.maximum(told - plain, _LEAST_GAP)
