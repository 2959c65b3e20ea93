"""Memory that every part of training and judging asks of its device: counted, at the shape of Llama-3.1-8B.

    python -m benchmarks.cost.device_memory --check smollm2-135m --out device_memory.json

Counted are all tensors that live at once on a device that only knows shapes
(common/pretended_accelerator.py); attention as PyTorch computes it without a fused kernel, so that a GPU
takes less. --check counts real models in the same way, runs them on the CPU, and compares with how far the
process's resident memory rises. What answers take on the disk is the estimate that `pad-vllm train` prints.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.common import arguments
from benchmarks.common.bare_models import SHAPES
from benchmarks.common.pretended_accelerator import NAME, PretendedAccelerator, register
from benchmarks.cost import stages
from benchmarks.cost.stages import Lengths
from pad_vllm.opened_base import base_folder, open_model
from pad_vllm.persrm import PersRM
from pad_vllm.training.objective.training_model import skeleton, untrained_persrm
from pad_vllm.training.objective.training_store import TrainingStore
from pad_vllm.training.settings import DistillationSettings, Settings

_GIB = 2**30
_BYTES_OF_A_TRAINED_NUMBER = 16  # itself, its gradient and AdamW's two, in float32

EIGHT_B = SHAPES["llama-8b"]
"""Llama-3.1-8B's."""

_TEACHER = DistillationSettings({"friendly": "x", "brief": "x", "formal": "x"})
_NAMES = tuple(_TEACHER.sentences)


class Command(NamedTuple):
    """A command's stage, with its default settings."""

    stage: Any
    settings: Settings
    answer: int
    """Tokens of an answer at 8B."""


def _settings(method: str, **more: Any) -> Settings:
    return Settings("", (), "", dtype="bfloat16", method=method, **more)


COMMANDS = {
    "train, pairs": Command(stages.pairs, _settings("pairs"), 512),
    "train, pairs, heads only": Command(stages.pairs, _settings("pairs", fork_layer=-1), 512),
    "train, scores": Command(stages.scores, _settings("scores", head_rank=128), 512),
    "train, prompt": Command(
        stages.prompt, _settings("prompt", head_rank=128, teacher=_TEACHER), 80
    ),
    "train, prompt, prefixes": Command(
        stages.prefixes, _settings("prompt", head_rank=128, teacher=_TEACHER), 80
    ),
    "steer, fit": Command(stages.judging, _settings("scores", head_rank=128), 512),
}


def make_model(backbone: Any, command: Command) -> PersRM:
    """The command's untrained model; fork layer -1 is heads only."""
    settings = command.settings
    if settings.fork_layer == -1:
        layers = backbone.config.num_hidden_layers
        settings = Settings(**{**vars(settings), "fork_layer": layers})
    torch.manual_seed(0)
    return untrained_persrm(backbone, _NAMES, settings)


class CountedParts:
    """Peaks of the parts that run on a pretended accelerator."""

    def __init__(self, accelerator: PretendedAccelerator) -> None:
        self.accelerator, self.found = accelerator, dict[str, dict[str, int]]()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count within it."""
        self.accelerator.forget_peak()
        start = self.accelerator.live_bytes
        yield
        self.found[name] = {"start": start, "peak": self.accelerator.peak_bytes}


class MeasuredParts:
    """Peaks of this process's resident memory."""

    def __init__(self) -> None:
        self.found = dict[str, dict[str, int]]()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure within it."""
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed would be used again, unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        start = _status("VmRSS")
        yield
        self.found[name] = {"start": start, "peak": _status("VmHWM")}


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def counted(command: Command, lengths: Lengths, base: str | None) -> dict[str, Any]:
    """Peaks of a command's parts, without numbers. base: None is the 8B shape."""
    accelerator = PretendedAccelerator()
    parts = CountedParts(accelerator)
    with torch.device("meta"):
        model = make_model(_bare(base), command)
    accelerator.place(model, lambda _: f"{NAME}:0")
    weights = sum(p.numel() * p.element_size() for p in model.backbone.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with accelerator:
        command.stage(model, lengths, parts)
    return {
        "weights": weights,
        "trained": trained,
        "parts": parts.found,
        "products_on_cpu": sorted(accelerator.products_on_cpu),
        **_disk(model, lengths, command),
    }


def _bare(base: str | None) -> Any:
    """A backbone without weights, in bfloat16."""
    if base is not None:
        backbone = skeleton(base_folder(base))
        backbone.set_attn_implementation("eager")  # as training on a CPU
        return backbone.to(torch.bfloat16)
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**EIGHT_B)).to(torch.bfloat16)


def measured(command: Command, lengths: Lengths, base: str) -> dict[str, Any]:
    """Peaks of a command's parts on the CPU."""
    backbone = open_model(
        base_folder(base), dtype="bfloat16", device=torch.device("cpu"), attention="eager"
    )
    parts, model = MeasuredParts(), make_model(backbone, command)
    # Files are mapped: weights take memory only when they are first read.
    sum(float(parameter.detach().sum()) for parameter in model.parameters())
    command.stage(model, lengths, parts)
    return {"parts": parts.found}


def _disk(model: PersRM, lengths: Lengths, command: Command) -> dict[str, int]:
    """The estimate of `pad-vllm train`: bytes of an answer, with what is at the fork and without."""
    groups = stages.examples(model, lengths)
    store = TrainingStore(model, None, command.settings, Path(), "")
    answers = 2 * len(groups)
    kept = store.whole_work(groups).num_bytes // answers
    store.keep_no_forked()
    again = store.whole_work(groups).num_bytes // answers
    return {"disk": kept, "disk_within_budget": again}


def in_process(args: argparse.Namespace, kind: str, name: str, base: str | None) -> dict[str, Any]:
    """`counted` of all commands or `measured` of one, in a process of its own.

    What a process has freed it may keep, so that a second command would seem to need less.
    """
    own = ["--out", "-", "--one", kind, name, *(["--base", base] if base else [])]
    sizes = ["--prompt", str(args.prompt), "--answer", str(args.answer)]
    argv = [sys.executable, "-m", "benchmarks.cost.device_memory", *own, *sizes]
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, text=True, check=True, start_new_session=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def rows_at_8b(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each part: GiB by what they are for."""
    rows = []
    for name, result in results.items():
        for part, sizes in result["parts"].items():
            has_optimiser = part.startswith("step") and "again" not in part
            trained = result["trained"] * (_BYTES_OF_A_TRAINED_NUMBER if has_optimiser else 4)
            other = sizes["peak"] - result["weights"] - trained
            gib = {"weights": result["weights"], "trained": trained, "other": other}
            rows.append(
                {
                    "command": name,
                    "part": part,
                    **{key: round(value / _GIB, 2) for key, value in gib.items()},
                    "peak": round(sizes["peak"] / _GIB, 2),
                }
            )
    return rows


def check_rows(base: str, pairs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rises above what lived before each part, counted and measured."""
    rows = []
    for name, (count, measure) in pairs.items():
        for part, sizes in count["parts"].items():
            real = measure["parts"][part]
            rises = [one["peak"] - one["start"] for one in (sizes, real)]
            whole = [rise + count["weights"] for rise in rises]
            rows.append(
                {
                    "base": base,
                    "command": name,
                    "part": part,
                    "counted_mib": round(rises[0] / 2**20, 1),
                    "measured_mib": round(rises[1] / 2**20, 1),
                    "measured_share": round(rises[1] / max(rises[0], 1), 2),
                    "share_with_weights": round(whole[1] / whole[0], 2),
                }
            )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a part."""
    lines = [
        "| command | part | weights | trained, gradients, AdamW | activations, logits, sums | peak, GiB |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        sizes = [f"{row[key]:.1f}" for key in ("weights", "trained", "other", "peak")]
        lines.append(f"| {row['command']} | {row['part']} | {' | '.join(sizes)} |")
    return lines


def check_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a part."""
    lines = [
        "| base | command | part | counted, MiB | measured, MiB | measured / counted | with the weights |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        names = " | ".join(row[key] for key in ("base", "command", "part"))
        sizes = f"{row['counted_mib']:.0f} | {row['measured_mib']:.0f}"
        shares = f"{row['measured_share']:.2f} | {row['share_with_weights']:.2f}"
        lines.append(f"| {names} | {sizes} | {shares} |")
    return lines


def disk_table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Markdown: GiB that 10,000 answers take, a line a command that keeps some."""
    lines = ["| command | 10,000 answers, GiB | within a budget, GiB |", "| --- | ---: | ---: |"]
    for name, result in results.items():
        if name.startswith("train"):
            sizes = [10_000 * result[key] / _GIB for key in ("disk", "disk_within_budget")]
            lines.append(f"| {name} | {sizes[0]:.1f} | {sizes[1]:.1f} |")
    return lines


def print_one(args: argparse.Namespace) -> None:
    """What a process of its own found, as the last line."""
    kind, name = args.one
    if kind == "measured":
        found = measured(COMMANDS[name], _lengths(args, name), args.base)
    else:
        register()
        found = {
            one: counted(command, _lengths(args, one), args.base)
            for one, command in COMMANDS.items()
        }
    print(json.dumps(found))


def _lengths(args: argparse.Namespace, name: str) -> Lengths:
    command = COMMANDS[name]
    rank = command.settings.head_rank
    if args.base is None:
        return Lengths(256, command.answer, rank=rank)
    return Lengths(args.prompt, args.answer, rank=rank)


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__, base=None, adapter=None)
    parser.add_argument("--check", nargs="*", default=[], help="bases to run as well")
    parser.add_argument("--prompt", type=int, default=64, help="of --check, tokens")
    parser.add_argument("--answer", type=int, default=64, help="of --check, tokens")
    parser.add_argument("--base", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print_one(args)
        return
    with ThreadPoolExecutor(len(COMMANDS) + 2) as pool:
        run = partial(pool.submit, in_process, args)
        at_8b = run("counted", "all", None)
        at_base = {base: run("counted", "all", base) for base in args.check}
        real = {
            (base, name): run("measured", name, base) for base in args.check for name in COMMANDS
        }
    results = at_8b.result()
    rows, checked = rows_at_8b(results), list[dict[str, Any]]()
    for base, counts in at_base.items():
        pairs = {name: (counts.result()[name], real[base, name].result()) for name in COMMANDS}
        checked += check_rows(base, pairs)
    result = {
        "command": arguments.command_line(),
        "shape": EIGHT_B,
        "counted": results,
        "rows": rows,
        "checked": checked,
        "table": table(rows),
        "check_table": check_table(checked),
        "disk_table": disk_table(results),
    }
    print("\n".join([*result["check_table"], *result["disk_table"]]))
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
