"""What a client is told of a guided answer: the field `pad` of responses and of `RequestOutput`.

Counted in the worker (serving/answers.py), asked for by the front end (vllm_api/answers.py). Knows neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

MARK = "_pad_answer"
"""In a guided request's `extra_args`: the front end's mark, by which it asks the worker for the outcome."""


class Outcome(TypedDict):
    """Of one answer, or of all answers to one request."""

    unguided_tokens: int | None
    """How many of its tokens the base chose without a reward; None where that is not known any more."""

    stopped: bool
    """Whether PAD ended it for that reason (`on_failure` "stop")."""


def unknown() -> Outcome:
    """Of an answer that nobody counted."""
    return {"unguided_tokens": None, "stopped": False}


def total(outcomes: Sequence[Outcome]) -> Outcome | None:
    """Of all of them together; None of none."""
    counts = [outcome["unguided_tokens"] for outcome in outcomes]
    known = [count for count in counts if count is not None]
    if not counts:
        return None
    return {
        "unguided_tokens": sum(known) if len(known) == len(counts) else None,
        "stopped": any(outcome["stopped"] for outcome in outcomes),
    }
