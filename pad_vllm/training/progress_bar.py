"""A progress bar while a long job runs; removed when it ends, and not shown without a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(label: str, total: int, *, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error.

    Args:
        label: stands before the bar.
        total: number of steps.
        done: steps that an earlier run took.

    Yields:
        A function to call with the number of steps just taken.
    """
    console = Console(stderr=True)
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with progress:
        task = progress.add_task(label, total=total, completed=done)
        yield lambda steps: progress.advance(task, steps)
