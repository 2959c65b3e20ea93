"""How far a `pad-vllm train --teacher prompt` is, read from the lines that it prints.

In: lines. Out: a share from 0 to 1, and what is being done. Lines that are not known change nothing, so
another wording of the log costs the bar its steps and no job.
"""

from __future__ import annotations

import math
import re
import time
from typing import NamedTuple


class Stage(NamedTuple):
    """A part of the training."""

    begins: re.Pattern[str]
    """The line by which it is recognised; groups 1 and 2, if any, count what is done of how many."""

    start: float
    """Share of the whole job that lies before it."""

    end: float

    message: str


_STAGES = (
    Stage(re.compile(r"answers: [\d,]+ to draw"), 0.02, 0.45, "the model answers some prompts"),
    Stage(re.compile(r"fork activations: (\d+) of (\d+)"), 0.45, 0.6, "the answers are read"),
    Stage(
        re.compile(r"the teacher's rewards: (\d+) of (\d+)"),
        0.6,
        0.88,
        "the model, told the sentence, reads them",
    ),
    Stage(re.compile(r"stage 1 step"), 0.88, 0.95, "the dimension is trained"),
)
MERGING = Stage(re.compile("$^"), 0.95, 0.98, "it joins the other dimensions")
LOADING = Stage(re.compile("$^"), 0.98, 1.0, "the server loads it")

_CREEP_S = 40.0
"""Between two known points the share goes on, ever more slowly, at this time constant."""


class TrainingProgress:
    """The share of one job, which never falls."""

    def __init__(self) -> None:
        self.message = "training starts"
        self._reached, self._next = 0.0, _STAGES[0].start
        self._since = time.monotonic()

    def read(self, line: str) -> None:
        """Take a line of the training's output."""
        for stage in _STAGES:
            if match := stage.begins.search(line):
                done, of = map(int, match.groups() or (0, 1))
                width = stage.end - stage.start
                steps = max(of, 1)
                self._move(
                    stage,
                    stage.start + width * min(done / steps, 1),
                    min(stage.end, stage.start + width * (done + max(steps / 8, 1)) / steps),
                )

    def enter(self, stage: Stage) -> None:
        """Say that a stage begins which no line tells."""
        self._move(stage, stage.start, stage.end)

    def share(self) -> float:
        """From 0 to 1."""
        waited = time.monotonic() - self._since
        return self._reached + (self._next - self._reached) * (1 - math.exp(-waited / _CREEP_S))

    def _move(self, stage: Stage, reached: float, upcoming: float) -> None:
        self.message = stage.message
        now = self.share()
        if reached >= self._reached:
            self._reached, self._next = max(reached, now), max(upcoming, now)
            self._since = time.monotonic()
