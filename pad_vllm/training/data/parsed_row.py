"""One row of a data file as it was read: a prompt, its answers, and what of it was left out, by reason.

In: values of columns. Out: `ParsedRow`, or an error that says what is wrong with the row. Every format
(row_formats.py) and every published data set (published_dataset_columns.py) is read into it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pad_vllm.text.conversation import Conversation
from pad_vllm.training.data.preference_record import Drawing, Response
from pad_vllm.wording import listed, short_repr

MALFORMED = "malformed"
NO_SCORE = "no score"
EMPTY_ANSWER = "empty answer"
EQUAL_ANSWERS = "equal answers"
TOO_FEW_ANSWERS = "fewer than two answers"
DUPLICATE = "duplicate"
"""Reasons why a row, an answer or a record is left out, as reports name them."""


class UnusableRow(ValueError):
    """A row in a known format from which nothing can be learned. `reason`: one of those above."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class ParsedRow:
    """What one row says, before rows of one prompt are joined and duplicates are dropped."""

    prompt: Conversation
    responses: list[Response]
    scorers: Mapping[str, str] = field(default_factory=dict)
    """Dimension -> the scorer that made its scores."""

    one_of_several: bool = False
    """Rows of the file with the same prompt are one record: each has one answer."""

    left_out: tuple[str, ...] = ()
    """For each answer of the row that is not among `responses`: the reason."""

    drawn_by: Drawing | None = None
    unread_columns: tuple[str, ...] = ()


def answer_text(value: Any, column: str) -> str:
    """The text of an answer. Raises UnusableRow for none, ValueError for what is no text."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UnusableRow(EMPTY_ANSWER, f"{column} is {short_repr(value)}; text is needed")
    if not isinstance(value, str):
        raise ValueError(f"{column} is {short_repr(value)}; text is needed")
    return value


def known_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores without those that are null or NaN. Raises UnusableRow where none is left."""
    known = {name: score for name, score in scores.items() if not _is_unknown(score)}
    if not known:
        raise UnusableRow(NO_SCORE, f"no score: {listed(scores)} are null")
    return known


def _is_unknown(score: Any) -> bool:
    return score is None or (isinstance(score, float) and math.isnan(score))


def pair_responses(
    chosen: str, rejected: str, dimension: str, scores: tuple[float, float] = (1.0, 0.0)
) -> list[Response]:
    """Two responses, the preferred one first.

    Args:
        chosen: text of the first.
        rejected: text of the second.
        dimension: what the scores are of.
        scores: theirs.
    """
    return [
        Response(text=text, scores={dimension: score})
        for text, score in zip((chosen, rejected), scores, strict=True)
    ]
