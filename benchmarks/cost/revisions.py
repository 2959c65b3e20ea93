"""What `train` and `steer` take at two revisions: CPU seconds and peak memory of the whole process tree.

    python -m benchmarks.cost.revisions --checkout before=../before --checkout after=. --out revisions.json

The same commands in turns, from nothing: heads for three instructions, then what they do to answers. All
processes run on one core with one thread, so that CPU seconds say what the work is, whatever else the
machine does. Memory is the largest sum of the processes' proportional set sizes (PSS), looked at every other
second, to compare with 1.5 times the weights in the type they are read in and the KV cache. A checkout's
commands are spelled as it spells them; both read the same prompts, and judge the same adapter, the first
checkout's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.common import arguments
from pad_vllm.adapter.backbone.safetensors_headers import stored_tensors
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.steering.evaluation_prompts import JUDGE_PROMPTS, STEERING_PROMPTS
from pad_vllm.training.distillation.distillation_prompts import SHIPPED_PROMPTS

SENTENCES = (
    "friendly=Answer in a warm and casual tone.",
    "brief=Answer in as few words as possible.",
    "formal=Answer in formal and polite language.",
)
_GIB = 2**30
_SECONDS_BETWEEN_LOOKS = 2.0


class Used(NamedTuple):
    """What a command took."""

    cpu_seconds: float
    """User and system time of it and all its children."""

    wall_seconds: float
    peak_pss_gib: float
    """The largest sum over its processes."""

    largest_process_gib: float
    """Of its processes' peaks of resident memory, the largest."""


class TreeMemory(threading.Thread):
    """Looks at the memory of a process and all below it until told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.root, self.ended, self.peak = psutil.Process(pid), threading.Event(), 0

    def run(self) -> None:
        """Until `ended` is set."""
        while not self.ended.wait(_SECONDS_BETWEEN_LOOKS):
            self.peak = max(self.peak, self._sum())

    def _sum(self) -> int:
        total = 0
        try:
            processes = [self.root, *self.root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0
        for process in processes:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
                total += process.memory_full_info().pss
        return total


def run_measured(argv: Sequence[str], environment: Mapping[str, str], log: Path) -> Used:
    """Run a command to its end.

    Args:
        argv: The command.
        environment: Whole.
        log: Gets what it prints.

    Raises:
        RuntimeError: It failed.
    """
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            argv,
            cwd=log.parent,  # where Python would look first, is no checkout
            env=dict(environment),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        memory = TreeMemory(process.pid)
        memory.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        memory.ended.set()
        memory.join()
    if process.returncode:
        raise RuntimeError(f"{shlex.join(argv)} ended with {process.returncode}; see {log}")
    return Used(
        round(usage.ru_utime + usage.ru_stime, 1),
        round(time.monotonic() - start, 1),
        round(memory.peak / _GIB, 2),
        round(usage.ru_maxrss * 1024 / _GIB, 2),
    )


class Checkout(NamedTuple):
    """A checkout of the project and how its commands are spelled."""

    name: str
    folder: Path

    def train(self, args: argparse.Namespace, work: Path) -> list[str]:
        """Heads for three instructions, from nothing."""
        dimensions = [part for sentence in SENTENCES for part in ("--dimension", sentence)]
        return [
            *("train", args.base, "--teacher", "prompt", "--no-trial"),
            *("--answers", str(args.answers), "--prompts", str(work / "learn.txt"), *dimensions),
            *("--cache", str(work / f"{self.name}-cache"), "--out", str(work / self.name)),
        ]

    def steer(self, args: argparse.Namespace, work: Path, adapter: Path) -> list[str]:
        """The adapter under 16 conditions: 3 dimensions both ways, told, and both."""
        has_steer = (self.folder / "pad_vllm" / "cli" / "steer.py").exists()
        command, prompts = ("steer", "--prompts") if has_steer else ("evaluate", "--steering")
        return [
            *(command, str(adapter), "--base", args.base, prompts, str(work / "asked.txt")),
            *("--judge-prompts", str(work / "judge.txt"), "--no-mixes", "--temperature", "0"),
            *("--tokens", str(args.tokens), "--out", str(work / f"{self.name}-steering.json")),
        ]

    def environment(self) -> dict[str, str]:
        """One thread, this checkout's code."""
        return {**os.environ, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}


def write_prompts(args: argparse.Namespace, work: Path) -> None:
    """The same prompts for both checkouts."""
    parts = {
        "learn": (SHIPPED_PROMPTS, None),
        "asked": (STEERING_PROMPTS, args.prompts),
        "judge": (JUDGE_PROMPTS, args.judge_prompts),
    }
    for name, (file, count) in parts.items():
        lines = file.read_text("utf-8").splitlines()[:count]
        (work / f"{name}.txt").write_text("\n".join(lines) + "\n")


def measure(args: argparse.Namespace, work: Path) -> dict[str, dict[str, list[Used]]]:
    """Command -> checkout -> what each round took; what --work has from an earlier start is not run again."""
    checkouts = [Checkout(name, Path(folder).resolve()) for name, folder in args.checkout]
    used: dict[str, dict[str, list[Used]]] = {name: {} for name in args.commands}
    for number in range(args.rounds):
        folder = work / str(number)
        folder.mkdir(exist_ok=True)
        write_prompts(args, folder)
        for command in args.commands:
            for checkout in checkouts:
                options = (
                    checkout.train(args, folder)
                    if command == "train"
                    else checkout.steer(args, folder, work / "0" / checkouts[0].name)
                )
                took = _run_once(args, checkout, folder / f"{checkout.name}-{command}", options)
                used[command].setdefault(checkout.name, []).append(took)
                print(command, checkout.name, took, flush=True)
    return used


def _run_once(
    args: argparse.Namespace, checkout: Checkout, stem: Path, options: Sequence[str]
) -> Used:
    """What a command took; kept in stem.used.json, beside what it printed."""
    kept = stem.with_name(f"{stem.name}.used.json")
    if not kept.exists():
        argv = ["taskset", "-c", str(args.core), sys.executable, "-m", "pad_vllm", *options]
        took = run_measured(argv, checkout.environment(), stem.with_name(f"{stem.name}.log"))
        kept.write_text(json.dumps(took._asdict()))
    return Used(**json.loads(kept.read_text()))


def weights_gib(base: str, bytes_each: int) -> float:
    """Of a checkpoint's weights, in a type of that width."""
    tensors = stored_tensors(Path(resolve_base(base))).values()
    return sum(math.prod(tensor.shape) for tensor in tensors) * bytes_each / _GIB


def result_rows(used: Mapping[str, Mapping[str, Sequence[Used]]]) -> list[dict[str, Any]]:
    """A row for each command and checkout; "share" is of the first checkout's CPU seconds."""
    rows = []
    for command, by_checkout in used.items():
        first = statistics.median(u.cpu_seconds for u in next(iter(by_checkout.values())))
        for name, rounds in by_checkout.items():
            cpu = statistics.median(u.cpu_seconds for u in rounds)
            rows.append(
                {
                    "command": command,
                    "checkout": name,
                    "share": round(cpu / first, 3),
                    "rounds": [u._asdict() for u in rounds],
                }
            )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a command and checkout."""
    lines = [
        "| command | revision | CPU seconds | share | peak of all processes, GiB | largest process, GiB |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cpu, pss, rss = (
            statistics.median(one[key] for one in row["rounds"])
            for key in ("cpu_seconds", "peak_pss_gib", "largest_process_gib")
        )
        cells = [row["command"], row["checkout"], f"{cpu:.0f}", f"{row['share']:.2f}"]
        lines.append(f"| {' | '.join(cells)} | {pss:.2f} | {rss:.2f} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__, base="qwen2.5-coder-0.5b", adapter=None)
    parser.add_argument("--checkout", type=arguments.name_and_value, action="append", required=True)
    parser.add_argument("--commands", nargs="+", default=["train", "steer"])
    parser.add_argument("--answers", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=24, help="prompts that are answered")
    parser.add_argument("--judge-prompts", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--core", type=int, default=1)
    parser.add_argument("--work", type=Path, help="is kept (default: is not)")
    args = parser.parse_args()
    args.base = resolve_base(args.base)  # a folder: not every revision knows every name
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        rows = result_rows(measure(args, work))
    result = {
        "command": arguments.command_line(),
        **{name: getattr(args, name) for name in ("answers", "prompts", "judge_prompts", "tokens")},
        "kv_cache_gib": float(os.environ.get("VLLM_CPU_KVCACHE_SPACE", "0")),
        "weights_gib": {
            name: round(weights_gib(args.base, width), 2)
            for name, width in (("bfloat16", 2), ("float32", 4))
        },
        "rows": rows,
        "table": table(rows),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
