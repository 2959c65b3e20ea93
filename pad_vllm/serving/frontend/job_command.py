"""Runs one command of a dimension job: without a shell, at a low priority, line by line.

In: a command line. Out: its lines as they come, or CommandFailed with what it said last. Knows nothing of
jobs.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

_NICENESS = 10  # less of the CPU than serving gets, and never nothing: 19 starves on a busy machine
_LINES_KEPT, _LINE_CHARS, _MESSAGE_CHARS = 40, 10_000, 1000


class CommandFailed(RuntimeError):
    """A command ended badly; the message is what it said last."""


class JobCommand:
    """The command that is running, if one is."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, command: Sequence[str], on_line: Callable[[str], None]) -> None:
        """Run a command to its end.

        Args:
            command: program and arguments, one text each.
            on_line: called with each line that it prints.

        Raises:
            CommandFailed: it ended with another code than 0.
        """
        process = self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        with suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PGRP, process.pid, _NICENESS)
        lines: deque[str] = deque(maxlen=_LINES_KEPT)
        assert process.stdout is not None
        async for line in _lines(process.stdout):
            lines.append(line)
            on_line(line)
        if await process.wait() != 0:
            raise CommandFailed(_what_failed(lines, process.returncode))

    def stop(self) -> None:
        """End it, with all processes that it started."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines of any length; bars of a terminal end in carriage returns."""
    rest = ""
    while block := await stream.read(1 << 16):
        text = rest + block.decode("utf-8", "replace").replace("\r", "\n")
        *lines, rest = text.split("\n")
        rest = rest[-_LINE_CHARS:]
        for line in lines:
            yield line
    if rest:
        yield rest


def _what_failed(lines: Sequence[str], code: int | None) -> str:
    """What a command printed of its failure: from its error message on, else its last line."""
    said = [line.strip() for line in lines if line.strip()]
    starts = [index for index, line in enumerate(said) if line.startswith("Error:")]
    text = " ".join(said[starts[-1] :] if starts else said[-1:])
    return f"it ended with code {code}: {text[:_MESSAGE_CHARS] or 'it said nothing'}"
