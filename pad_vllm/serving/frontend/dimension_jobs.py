"""Dimensions made from a sentence while the server runs: trained, merged with the served ones, loaded.

In: a name and a sentence. Out: a job, whose end is an adapter that has the served dimensions and the new one;
requests name it as `pad_adapter`. Training and merging are commands of their own (`pad-vllm train`, `pad-vllm
merge`), one job at a time. It knows no HTTP and no engine: how an adapter is loaded is the caller's.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pad_vllm.adapter.manifest import DIMENSION_NAME, read_config
from pad_vllm.config import PADConfig
from pad_vllm.serving.frontend.job_command import CommandFailed, JobCommand
from pad_vllm.serving.frontend.training_progress import LOADING, MERGING, TrainingProgress
from pad_vllm.serving.start.dimension_job_settings import require_dimension_jobs_possible
from pad_vllm.serving.start.made_adapters import JobFolders, adapter_name, new_job_folder
from pad_vllm.vllm_api.vllm_names import VllmConfig
from pad_vllm.wording import listed, short_repr

MAX_NAME_CHARS, MAX_SENTENCE_CHARS = 40, 400
LONGEST_JOB_S = 3600.0
"""A job that takes longer is ended."""

_TRAINING = ("--teacher", "prompt", "--answers", "40", "--max-response", "60")
"""So few and short answers that a model of 135M takes two or three minutes on two cores."""

_ENGINE = ("--vllm", "kv_cache_memory_bytes=536870912")
"""Of the engine that draws the answers, beside the server's."""

_GPU_ENGINE = ("--vllm", "gpu_memory_utilization=0.1")

LoadAdapter = Callable[[str, str], Awaitable[None]]
"""(name, folder): lets requests name the adapter. Raises ValueError where it cannot be served."""


class JobRefused(RuntimeError):
    """Another job is running."""


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

    def __init__(self, settings: JobSettings, latest: str, dimensions: Sequence[str]) -> None:
        """Nothing is started.

        Args:
            settings: what all jobs share.
            latest: folder of the adapter that the next job adds to: the last one that a job made, or the one
                that the server was started with.
            dimensions: of that adapter.
        """
        self._settings = settings
        self._latest, self._dimensions = latest, tuple(dimensions)
        self._command = JobCommand()
        self._task: asyncio.Task[None] | None = None  # the event loop itself holds none
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
                f"a job is running already, which makes {running.name}; accepted: one at a time. Try again "
                "when it has ended"
            )
        job = DimensionJob(name, sentence)
        self.jobs[job.number] = job
        self._task = asyncio.create_task(self._run(job, load))
        return job

    def stop(self) -> None:
        """End the command that is running."""
        self._command.stop()

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
        try:
            await self._command.run(
                [*self._settings.program, command, *arguments], job.progress.read
            )
        except CommandFailed as error:
            raise CommandFailed(f"pad-vllm {command}: {error}") from None

    def _without_paths(self, message: str) -> str:
        return message.replace(f"{self._settings.root}{os.sep}", "")


def make_dimension_jobs(config: VllmConfig, pad: PADConfig) -> DimensionJobs | None:
    """The jobs of a server, None where its operator did not switch them on.

    Raises ValueError where they are switched on and impossible.
    """
    require_dimension_jobs_possible(pad)
    if not pad.dimension_jobs:
        return None
    settings = JobSettings(
        base=config.model_config.model,
        root=Path(pad.adapter_root).expanduser().resolve(),
        chat_template=read_config(pad.adapter).chat_template,
        on_cpu=config.device_config.device_type == "cpu",
    )
    made = [f for f in pad.adapters.values() if settings.root in Path(f).resolve().parents]
    latest = [pad.adapter, *made][-1]
    return DimensionJobs(settings, latest, read_config(latest).dimensions)


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
