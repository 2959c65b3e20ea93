"""What was declined or failed in a step: counted by reason, and logged without filling the log.

In: a reason, how many rows, what happened. Out: the counts; and a line, at once for the first of a reason,
with its error's traceback, then one in ten seconds at most, with all counts. It knows no engine.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Literal
from weakref import WeakValueDictionary

Reason = Literal[
    "misaligned",  # the engine's hidden states or tokens are not of these logits rows
    "engine failed",
    "not finite",  # a NaN or inf reward
    "text lost",  # the engine does not know all of the row's tokens
    "no room",  # in the reward model's cache or positions
    "late actor",
    "lost actor",  # dead, restarting, or it raised an error
    "late start",  # no row: the reward model begins after the base's forward instead of with it
    "bad request",  # no row of a step: a request that the front end should have refused
    "not told",  # guided rows whose explanation or figures are lost
]
_NO_ROW: tuple[Reason, ...] = ("late start", "bad request", "not told")
_EVERY_S = 10.0


class FailureLog:
    """Of one vLLM instance."""

    def __init__(
        self, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """log: takes warnings."""
        self._log, self._clock = log, clock
        self._next = clock()
        self.counts: Counter[Reason] = Counter()
        """Reason -> rows, each counted in every step it was declined in."""

    @property
    def rows(self) -> int:
        """Rows without guidance, over all reasons and steps."""
        return sum(self.counts.values()) - sum(self.counts[reason] for reason in _NO_ROW)

    def add(
        self, reason: Reason, count: int, message: str, error: BaseException | None = None
    ) -> None:
        """`count` more for the reason; said: what happened to what, and what follows."""
        if not count:
            return
        first = reason not in self.counts
        self.counts[reason] += count
        if first or self._clock() >= self._next:
            self._next = self._clock() + _EVERY_S
            self._log(_line(reason, message, error) if first else self._totals(message, error))

    def _totals(self, said: str, error: BaseException | None) -> str:
        counts = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
        why = f": {type(error).__name__}: {error}" if error else ""
        return f"PAD: {said}{why}. So far: {counts}"


def _line(reason: Reason, said: str, error: BaseException | None) -> str:
    trace = "\n" + "".join(traceback.format_exception(error)).rstrip() if error else ""
    return f"PAD: {reason}: {said}{trace}"


_instances: WeakValueDictionary[str, FailureLog] = WeakValueDictionary()


def failure_log_of(instance_id: str, log: Callable[[str], None]) -> FailureLog:
    """The one of a vLLM instance in this process, made where there is none."""
    return _instances.setdefault(instance_id, FailureLog(log))
