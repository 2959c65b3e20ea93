"""What a run tells: bars on a terminal, lines elsewhere, a log file, TensorBoard.

In: rows of the history, progress, remarks. Out: text and event files. A worker that is not the main one
has a `Log` too, which says nothing.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY = 20
"""Steps between two lines where there is no terminal."""


class TrainingLog:
    """folder: the run's; None prints and writes nothing. measured: what "accuracy" is the share of."""

    def __init__(
        self,
        folder: Path | None,
        console: Console | None = None,
        accuracy_label: str = "validation pairs",
    ) -> None:
        self.accuracy_label = accuracy_label
        self.folder, self.console = folder, console or Console()
        self.writers: dict[int, Any] = {}
        self.recent: list[float] = []
        self.bar: Progress | None = None
        self.tasks: dict[str, Any] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def write_line(self, text: str) -> None:
        """One line, on the console and in OUT.run/log.txt."""
        if self.folder is None:
            return
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)
        with (self.folder / "log.txt").open("a") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def progress(self, what: str, done: int, total: int) -> None:
        """How much is done: a bar on a terminal, a line elsewhere."""
        if self.folder is None:
            return
        if not self.console.is_terminal:
            self.write_line(f"{what}: {done} of {total}")
            return
        if self.bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console)
            self.bar.start()
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=total)
        self.bar.update(self.tasks[what], completed=done, total=total)

    def write_history_row(self, row: dict[str, Any], steps: int) -> None:
        """A step of training."""
        if self.folder is None:
            return
        stage, step = row["stage"], row["step"]
        events = self._events(stage, step)
        for name, value in row.get("accuracy", {}).items():
            events.add_scalar(f"accuracy/{name}", value, step)
        if "loss" in row:  # none before the first step
            events.add_scalar("loss", row["loss"], step)
            self.recent = [*self.recent[1 - _EVERY :], row["loss"]]
        if self.console.is_terminal:
            self.progress(f"stage {stage}", step, steps)
        elif step and step % _EVERY == 0:
            mean = sum(self.recent) / len(self.recent)
            self.write_line(f"stage {stage} step {step} of {steps}: loss {mean:.4f}")
        if "accuracy" in row:
            shares = ", ".join(f"{name} {value:.1%}" for name, value in row["accuracy"].items())
            self.write_line(f"stage {stage} step {step}: {self.accuracy_label} {shares}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        for writer in self.writers.values():
            writer.close()

    def _events(self, stage: int, step: int) -> Any:
        """The stage's writer. purge_step drops what a killed run wrote after its last checkpoint."""
        if stage not in self.writers:
            from torch.utils.tensorboard import SummaryWriter

            assert self.folder is not None
            folder = self.folder / "tensorboard" / f"stage{stage}"
            self.writers[stage] = SummaryWriter(str(folder), purge_step=step)
        return self.writers[stage]
