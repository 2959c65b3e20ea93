"""Rows that stayed unguided and other failures of a step: counted by reason, logged without flooding the log.

In: a reason, a number of rows, a message. Out: the counts, and log lines: the first failure of a reason at
once with its traceback, after that at most one line in ten seconds, with all counts. It knows no engine.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Literal

Reason = Literal[
    "misaligned",  # the engine's hidden states or tokens do not belong to these logits rows
    "engine failed",
    "not finite",  # a NaN or inf reward
    "text lost",  # the engine does not know all tokens of the row
    "late prompt",  # not translated for the reward model yet
    "no room",  # in the reward model's cache or positions
    "late actor",
    "lost actor",  # dead, restarting, or it raised an error
    "late start",  # no row: the reward model starts after the base's forward instead of with it
    "bad request",  # no row of a step: a request that the front end should have refused
    "instruction unread",  # the reserved KV blocks do not hold it
    "not told",  # no row left unguided: the explanation or the counts of guided rows are lost
]
_NOT_UNGUIDED: tuple[Reason, ...] = (
    "late start",
    "bad request",
    "instruction unread",  # its rows are counted as they come
    "not told",
)
_LOG_INTERVAL_S = 10.0


class FailureLog:
    """Counts the failures of one vLLM instance by reason, and logs them."""

    def __init__(
        self, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """log: writes a warning; clock: the time in seconds."""
        self._log, self._clock = log, clock
        self._next_line_at = clock()
        self.counts: Counter[Reason] = Counter()
        """Reason -> rows. A row is counted again in every step in which it fails."""

    @property
    def unguided_rows(self) -> int:
        """Rows that stayed unguided, over all reasons and steps."""
        return sum(self.counts.values()) - sum(self.counts[reason] for reason in _NOT_UNGUIDED)

    def add(
        self, reason: Reason, count: int, message: str, error: BaseException | None = None
    ) -> None:
        """Count a failure and log it: at once if it is the first of its reason, else every ten seconds.

        Args:
            reason: one of `Reason`; also the label in /metrics.
            count: number of rows. 0 does nothing.
            message: what failed, and what follows from it.
            error: the exception, if there was one. Its traceback is logged once for each reason.
        """
        if not count:
            return
        is_first = reason not in self.counts
        self.counts[reason] += count
        if is_first or self._clock() >= self._next_line_at:
            self._next_line_at = self._clock() + _LOG_INTERVAL_S
            line = _first_line(reason, message, error) if is_first else self._totals(message, error)
            self._log(line)

    def _totals(self, message: str, error: BaseException | None) -> str:
        counts = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
        cause = f": {type(error).__name__}: {error}" if error else ""
        return f"PAD: {message}{cause}. So far: {counts}"


def _first_line(reason: Reason, message: str, error: BaseException | None) -> str:
    trace = "\n" + "".join(traceback.format_exception(error)).rstrip() if error else ""
    return f"PAD: {reason}: {message}{trace}"
