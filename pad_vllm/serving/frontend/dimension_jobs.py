"""Dimensions made from a sentence while the server runs: trained, merged with the served ones, loaded.

In: a name and a sentence. Out: a job, whose end is an adapter that has the served dimensions and the new one;
requests name it as `pad_adapter`. Training and merging are commands of their own (`pad-vllm train`, `pad-vllm
merge`), started without a shell and with the lowest priority, one job at a time. It knows no HTTP and no
engine: how an adapter is loaded is the caller's.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pad_vllm.adapter.manifest import DIMENSION_NAME
from pad_vllm.serving.frontend.training_progress import LOADING, MERGING, TrainingProgress
from pad_vllm.serving.start.made_adapters import JobFolders, adapter_name, new_job_folder
from pad_vllm.wording import listed, short_repr

MAX_NAME_CHARS, MAX_SENTENCE_CHARS = 40, 400
LONGEST_JOB_S = 3600.0
"""A job that takes longer is ended."""

_TRAINING = ("--teacher", "prompt", "--answers", "24", "--max-response", "60")
"""So few and short answers that a model of 135M takes a minute or two on two cores."""

_ENGINE = ("--vllm", "kv_cache_memory_bytes=536870912")
"""Of the engine that draws the answers, beside the server's."""

_GPU_ENGINE = ("--vllm", "gpu_memory_utilization=0.1")
_LOWEST_PRIORITY = 19
_LINES_KEPT = 40

LoadAdapter = Callable[[str, str], Awaitable[None]]
"""(name, folder): lets requests name the adapter. Raises ValueError where it cannot be served."""


class JobRefused(ValueError):
    """Another job is running."""


class CommandFailed(RuntimeError):
    """A command ended badly; the message is what it said last."""


@dataclass(frozen=True)
class JobSettings:
    """What all jobs of a server share."""

    base: str
    """Folder or hub name of the served model."""

    root: Path
    """Folder in which jobs write. It is one from which the server may load adapters."""

    chat_template: str | None = None
    """Of the served adapter, which the new one has to have too."""

    on_cpu: bool = True
    program: Sequence[str] = (sys.executable, "-m", "pad_vllm")
    """What stands before `train` and `merge`."""


@dataclass
class DimensionJob:
    """One job, running or ended."""

    name: str
    sentence: str
    number: str = field(default_factory=lambda: secrets.token_hex(8))
    state: Literal["running", "done", "failed"] = "running"
    progress: TrainingProgress = field(default_factory=TrainingProgress)
    failure: str = ""
    adapter: str | None = None
    """Name of the adapter that has the new dimension, when it is served."""

    started: float = field(default_factory=time.monotonic)
    ended: float | None = None

    def as_json(self) -> dict[str, Any]:
        """What clients see."""
        return {
            "job": self.number,
            "name": self.name,
            "sentence": self.sentence,
            "state": self.state,
            "progress": 1.0 if self.state == "done" else round(self.progress.share(), 3),
            "message": self._message(),
            "seconds": round((self.ended or time.monotonic()) - self.started, 1),
            "adapter": self.adapter,
        }

    def _message(self) -> str:
        if self.state == "failed":
            return self.failure
        return f"served as {self.adapter}" if self.state == "done" else self.progress.message


class DimensionJobs:
    """The jobs of one server."""

    def __init__(self, settings: JobSettings, dimensions: Mapping[str, Sequence[str]]) -> None:
        """Nothing is started.

        Args:
            settings: what all jobs share.
            dimensions: folder -> dimensions, of the adapter that the server was started with and of those that
                earlier jobs made; the last one is what the next job adds to.
        """
        self._settings = settings
        self._latest = list(dimensions)[-1]
        self._dimensions = tuple(dimensions[self._latest])
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self.jobs: dict[str, DimensionJob] = {}
        """By number, the first one first."""

        atexit.register(self.stop)

    def start(self, name: str, sentence: str, load: LoadAdapter) -> DimensionJob:
        """Start a job; call it in a running event loop.

        Args:
            name: of the new dimension.
            sentence: how answers should be.
            load: serves the adapter that comes out.

        Raises:
            JobRefused: another job is running.
            ValueError: a name or a sentence that is not accepted.
        """
        name, sentence = name.strip(), sentence.strip()
        require_name(name, self._dimensions)
        require_sentence(sentence)
        running = next((job for job in self.jobs.values() if job.state == "running"), None)
        if running is not None:
            raise JobRefused(
                f"a job is running already, which makes {running.name}; accepted: one at a time. Try again when "
                "it has ended"
            )
        job = DimensionJob(name, sentence)
        self.jobs[job.number] = job
        self._task = asyncio.create_task(self._run(job, load))
        return job

    def stop(self) -> None:
        """End the command that is running, with all processes that it started."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _run(self, job: DimensionJob, load: LoadAdapter) -> None:
        try:
            await asyncio.wait_for(self._make(job, load), LONGEST_JOB_S)
        except asyncio.TimeoutError:
            job.failure = f"ended after {LONGEST_JOB_S / 60:.0f} minutes"
        except Exception as error:  # noqa: BLE001 a job that fails is shown, and the server goes on
            job.failure = self._without_paths(f"{error}") or type(error).__name__
        finally:
            self.stop()
            job.state = "failed" if job.adapter is None else "done"
            job.failure = job.failure or "ended"
            job.ended = time.monotonic()

    async def _make(self, job: DimensionJob, load: LoadAdapter) -> None:
        folders = new_job_folder(self._settings.root, job.name, job.number)
        merged, adapter = str(folders.merged), adapter_name(job.name)
        await self._call(job, "train", *self._training_arguments(job, folders))
        shutil.rmtree(folders.activations, ignore_errors=True)
        job.progress.enter(MERGING)
        await self._call(job, "merge", self._latest, str(folders.trained), "--out", merged)
        job.progress.enter(LOADING)
        await load(adapter, merged)
        self._latest, self._dimensions = merged, (*self._dimensions, job.name)
        job.adapter = adapter

    def _training_arguments(self, job: DimensionJob, folders: JobFolders) -> list[str]:
        settings = self._settings
        arguments = [settings.base, *_TRAINING, "--dimension", f"{job.name}={job.sentence}"]
        arguments += [*_ENGINE, *(() if settings.on_cpu else _GPU_ENGINE)]
        arguments += ["--cache", str(folders.activations), "--out", str(folders.trained)]
        if settings.chat_template is not None:
            folders.chat_template.write_text(settings.chat_template, "utf-8")
            arguments += ["--chat-template", str(folders.chat_template)]
        return arguments

    async def _call(self, job: DimensionJob, command: str, *arguments: str) -> None:
        """Run a command to its end. Raises CommandFailed."""
        process = self._process = await asyncio.create_subprocess_exec(
            *self._settings.program,
            command,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        with suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PGRP, process.pid, _LOWEST_PRIORITY)
        lines: deque[str] = deque(maxlen=_LINES_KEPT)
        assert process.stdout is not None
        async for line in _lines(process.stdout):
            lines.append(line)
            job.progress.read(line)
        if await process.wait() != 0:
            raise CommandFailed(_what_failed(command, lines, process.returncode))

    def _without_paths(self, message: str) -> str:
        return message.replace(f"{self._settings.root}{os.sep}", "")


def require_name(name: str, taken: Sequence[str]) -> None:
    """Raises ValueError for a name that no new dimension can have; taken: the dimensions that there are."""
    if len(name) > MAX_NAME_CHARS or not DIMENSION_NAME.fullmatch(name):
        raise ValueError(
            f"name is {short_repr(name)}; accepted: a letter, then letters, digits, _ and -, at most "
            f"{MAX_NAME_CHARS} in all. Correct it"
        )
    if name in taken:
        raise ValueError(
            f"there is a dimension {name} already, beside {listed(taken)}; accepted: another name"
        )


def require_sentence(sentence: str) -> None:
    """Raises ValueError for a text that cannot be an instruction, or an argument of a command."""
    if not sentence.isprintable() or not 0 < len(sentence) <= MAX_SENTENCE_CHARS:
        raise ValueError(
            f"sentence is {short_repr(sentence)}; accepted: one line of 1 to {MAX_SENTENCE_CHARS} printable "
            "characters, such as 'Answer in a warm and casual tone.' Correct it"
        )


async def _lines(stream: asyncio.StreamReader) -> Any:
    """Lines of any length: bars of a terminal end in carriage returns."""
    rest = ""
    while block := await stream.read(1 << 16):
        *lines, rest = (rest + block.decode("utf-8", "replace")).replace("\r", "\n").split("\n")
        rest = rest[-10_000:]
        for line in lines:
            yield line
    if rest:
        yield rest


def _what_failed(command: str, lines: Sequence[str], code: int | None) -> str:
    """What a command printed of its failure: from its error message on, else its last line."""
    said = [line.strip() for line in lines if line.strip()]
    starts = [index for index, line in enumerate(said) if line.startswith("Error:")]
    text = " ".join(said[starts[-1] :] if starts else said[-1:])
    return f"pad-vllm {command} ended with code {code}: {text[:1000] or 'it said nothing'}"
