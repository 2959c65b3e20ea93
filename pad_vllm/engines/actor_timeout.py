"""How long a step waits for one reward actor, and when one that was late or failed is asked again.

In: how long each answer took, or that one was lost. Out: the next wait, whether the actor is paused.
All rows of a step are sampled together, so a wait holds the unguided ones too. It knows no Ray.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_TIMES = 4  # the slowest of the last answers
# Remembered of them: the rare slow ones, where a prompt is read, are among so many.
_ANSWERS = 1000
_LEAST = 0.25  # of the deadline: a hiccup is no failure
_PAUSE = 100.0  # deadlines at most: an actor that is always late costs a hundredth of the time


class ActorTimeout:
    """With one actor."""

    def __init__(self, deadline: float, clock: Callable[[], float]) -> None:
        self._deadline, self._clock = deadline, clock
        self._took: deque[float] = deque(maxlen=_ANSWERS)
        self._pause, self._until = 0.0, clock()

    @property
    def wait_seconds(self) -> float:
        """The longest wait for the next answer: the deadline until one has come."""
        known = max(self._took, default=self._deadline)
        return min(max(_TIMES * known, _LEAST * self._deadline), self._deadline)

    @property
    def paused(self) -> bool:
        """Whether it is too early to ask again."""
        return self._clock() < self._until

    def record_answer(self, took: float) -> None:
        """In time, after `took` seconds."""
        self._took.append(took)
        self._pause = 0.0

    def record_failure(self) -> None:
        """No answer, or none in time: no pause after the first, then the deadline, twice that, ..."""
        # Its next answers may be as slow: they get the whole deadline.
        self._took.append(self._deadline)
        self._until = self._clock() + self._pause
        self._pause = min(max(2 * self._pause, self._deadline), _PAUSE * self._deadline)
