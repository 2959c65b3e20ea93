"""What a run reports: progress bars on a terminal, lines elsewhere, a log file, TensorBoard.

In: rows of the history, progress, lines. Out: text and event files. Workers other than the main one have a
`TrainingLog` too, without a folder, which writes nothing.
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
    """Writes a run's progress to the console, to log.txt and to TensorBoard."""

    def __init__(
        self,
        folder: Path | None,
        console: Console | None = None,
        accuracy_label: str = "validation pairs",
    ) -> None:
        """Make the folder if there is to be one.

        Args:
            folder: the run's; None: write nothing, anywhere.
            console: None: standard output.
            accuracy_label: what "accuracy" of a history row is the share of.
        """
        self.accuracy_label = accuracy_label
        self.folder, self.console = folder, console or Console()
        self.writers: dict[int, Any] = {}
        self.recent_losses: list[float] = []
        self.bars: Progress | None = None
        self.tasks: dict[str, Any] = {}
        self.begun: dict[str, tuple[float, int]] = {}
        """Label -> time and number done of its first call."""
        self.said: set[str] = set()
        """Stages whose time left was said once, after their first step."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def write_line(self, text: str) -> None:
        """Write one line to the console and to log.txt in the run's folder."""
        if self.folder is None:
            return
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)
        with (self.folder / "log.txt").open("a") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def progress(self, label: str, done: int, total: int) -> None:
        """Show how much is done: a bar on a terminal, a line elsewhere.

        Args:
            label: what is being done; one bar each.
            done: number of steps taken.
            total: number of steps.
        """
        if self.folder is None:
            return
        if not self.console.is_terminal:
            self.write_line(f"{label}: {done} of {total}{self._time_left(label, done, total)}")
            return
        if self.bars is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self.bars = Progress(*columns, TimeRemainingColumn(), console=self.console)
            self.bars.start()
        if label not in self.tasks:
            self.tasks[label] = self.bars.add_task(label, total=total)
        self.bars.update(self.tasks[label], completed=done, total=total)

    def _time_left(self, label: str, done: int, total: int) -> str:
        """What is left at the speed since this label's first call; empty until something is done."""
        now = time.monotonic()
        first_time, first_done = self.begun.setdefault(label, (now, done))
        if done <= first_done:
            return ""
        seconds = (now - first_time) / (done - first_done) * (total - done)
        left = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
        return f", about {left} left"

    def write_history_row(self, row: dict[str, Any], steps: int) -> None:
        """Write what a step of training showed. steps: of the stage."""
        if self.folder is None:
            return
        stage, step = row["stage"], row["step"]
        events = self._event_writer(stage, step)
        for name, value in row.get("accuracy", {}).items():
            events.add_scalar(f"accuracy/{name}", value, step)
        if "loss" in row:  # none before the first step
            events.add_scalar("loss", row["loss"], step)
            self.recent_losses = [*self.recent_losses[1 - _EVERY :], row["loss"]]
        label = f"stage {stage}"
        if self.console.is_terminal:
            self.progress(label, step, steps)
        else:
            left = self._time_left(label, step, steps)
            if left and (step % _EVERY == 0 or label not in self.said):
                self.said.add(label)
                mean = sum(self.recent_losses) / len(self.recent_losses)
                self.write_line(f"{label} step {step} of {steps}: loss {mean:.4f}{left}")
        if "accuracy" in row:
            shares = ", ".join(f"{name} {value:.1%}" for name, value in row["accuracy"].items())
            self.write_line(f"stage {stage} step {step}: {self.accuracy_label} {shares}")

    def close(self) -> None:
        """Remove the bars and close TensorBoard's files."""
        if self.bars is not None:
            self.bars.stop()
        for writer in self.writers.values():
            writer.close()

    def _event_writer(self, stage: int, step: int) -> Any:
        """The stage's writer. purge_step drops what a killed run wrote after its last checkpoint."""
        if stage not in self.writers:
            from torch.utils.tensorboard import SummaryWriter

            assert self.folder is not None
            folder = self.folder / "tensorboard" / f"stage{stage}"
            self.writers[stage] = SummaryWriter(str(folder), purge_step=step)
        return self.writers[stage]
