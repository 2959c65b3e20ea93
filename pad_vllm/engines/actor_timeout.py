"""How long a step waits for one reward actor, and how long an actor that was late or failed is left out.

In: how long each answer took, and each failure. Out: the longest wait for the next answer, and whether the
actor is paused. All rows of a step are sampled together, so a wait delays the unguided rows too.
ray_engine.py waits by it; the rows of a late actor get NaN and stay unguided. It does not know Ray.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_WAIT_FACTOR = 4  # times the slowest of the last answers
# So many answers are remembered that the rare slow ones, where a prompt is read, are among them.
_NUM_REMEMBERED = 1000
_MIN_WAIT_SHARE = 0.25  # of the deadline: a short delay is no failure
_MAX_PAUSE_DEADLINES = 100.0  # an actor that is always late costs a hundredth of the time


class ActorTimeout:
    """Wait and pauses for one actor."""

    def __init__(self, deadline: float, clock: Callable[[], float]) -> None:
        """deadline: seconds, the longest wait of all (`ray_deadline_s`); clock: gives seconds."""
        self._deadline, self._clock = deadline, clock
        self._answer_seconds: deque[float] = deque(maxlen=_NUM_REMEMBERED)
        self._pause, self._paused_until = 0.0, clock()

    @property
    def wait_seconds(self) -> float:
        """The longest wait for the next answer: the deadline until a first answer has come."""
        slowest = max(self._answer_seconds, default=self._deadline)
        return min(max(_WAIT_FACTOR * slowest, _MIN_WAIT_SHARE * self._deadline), self._deadline)

    @property
    def paused(self) -> bool:
        """Whether the pause after the last failure is still running, so that the actor is not called."""
        return self._clock() < self._paused_until

    def record_answer(self, seconds: float) -> None:
        """An answer came in time, after `seconds`; the next failure starts without a pause again."""
        self._answer_seconds.append(seconds)
        self._pause = 0.0

    def record_failure(self) -> None:
        """No answer came, or none in time. Starts a pause: none after the first failure in a row, then one
        deadline, two, four, ... up to 100 deadlines.
        """
        # The actor's next answers may be as slow: they get the whole deadline.
        self._answer_seconds.append(self._deadline)
        self._paused_until = self._clock() + self._pause
        longest = _MAX_PAUSE_DEADLINES * self._deadline
        self._pause = min(max(2 * self._pause, self._deadline), longest)
