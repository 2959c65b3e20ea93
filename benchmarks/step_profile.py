"""Where does the time of a guided step go? What PAD does in it, part by part, and the kernels it launches.

    python benchmarks/step_profile.py --batch 16 --out P.json
    python benchmarks/step_profile.py --shape llama-8b --fork 32 --batch 64 --kv-gib 2 --out P.json

One engine, every row guided under the guards of the demo adapter; `torch.profiler` looks at some steps
after warm-up. A part's host time is its own call's, its device time that of the kernels it launched (none on
a CPU, where both are one). The profiler itself costs: shares say more than sums.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import arguments
import forks
import speed

from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base

WHOLE = "all of PAD"


def parts() -> dict[str, tuple[Any, str]]:
    """name -> the owner of a function, and its name there."""
    import torch

    from pad_vllm.engines.shared.shared_rewards import SharedRewards
    from pad_vllm.kernels import kernel_choice
    from pad_vllm.serving.worker.answer_tokens import V1AnswerTokenReader, V2AnswerTokenReader
    from pad_vllm.serving.worker.batch_slots import BatchSlots
    from pad_vllm.serving.worker.logits_processor import PADLogitsProcessor
    from pad_vllm.serving.worker.outcome_table import OutcomeTable
    from pad_vllm.serving.worker.step_counters import StepCounters

    code = kernel_choice.rule_for_device(
        torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    return {
        WHOLE: (PADLogitsProcessor, "apply"),
        "which rows": (BatchSlots, "guided_rows"),
        "candidates": (code, "candidates"),
        "rewards": (SharedRewards, "rewards"),
        "text, V2": (V2AnswerTokenReader, "read"),
        "text, V1": (V1AnswerTokenReader, "read"),
        "guards": (code, "guarded_candidates"),
        "scores written": (code, "guide"),
        "counted": (StepCounters, "count_step"),
        "answers told": (OutcomeTable, "count_step"),
    }


def label(owner: Any, name: str, part: str) -> None:
    """Have the profiler see every call of it under the part's name."""
    from torch.profiler import record_function

    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def labelled(*args: Any, **kwargs: Any) -> Any:
        with record_function(f"pad: {part}"):
            return original(*args, **kwargs)

    setattr(owner, name, labelled)


def profile(llm: Any, extra: Mapping[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a step: parts {name: {host, device}}, kernels [{name, ms, count}], device of all."""
    import torch
    from torch.profiler import ProfilerActivity

    gpu = torch.cuda.is_available()
    for _ in range(2):
        speed.seconds(llm, args.batch, args.tokens, args.prompt, dict(extra))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with torch.profiler.profile(activities=activities) as seen:
        speed.seconds(llm, args.batch, args.tokens, args.prompt, dict(extra))
    return digest(seen.key_averages(), args.tokens, list(parts()))


def digest(events: Sequence[Any], steps: int, names: Sequence[str]) -> dict[str, Any]:
    """Of the profiler's averages, whose times are microseconds."""
    found: dict[str, dict[str, float]] = {}
    kernels = []
    for event in events:
        part = event.key.removeprefix("pad: ")
        if event.key.startswith("pad: ") and part in names and event.cpu_time_total:
            found[part] = {
                "host": round(event.cpu_time_total / 1e3 / steps, 4),
                "device": round(event.device_time_total / 1e3 / steps, 4),
            }
        elif "cuda" in str(event.device_type).lower() and not event.key.startswith("pad: "):
            own = event.self_device_time_total / 1e3 / steps
            kernels.append({"name": event.key, "ms": round(own, 4), "count": event.count})
    kernels.sort(key=lambda k: -float(k["ms"]))
    return {
        "parts": {name: found[name] for name in names if name in found},
        "device": round(sum(float(k["ms"]) for k in kernels), 3),
        "kernels": kernels[:40],
    }


def table(result: Mapping[str, Any]) -> list[str]:
    lines = ["| part | host, ms a step | device, ms a step |", "| --- | ---: | ---: |"]
    lines += [
        f"| {name} | {of['host']:.3f} | {of['device']:.3f} |"
        for name, of in result["parts"].items()
    ]
    return [*lines, f"| all kernels of a step, the base's among them | | {result['device']:.3f} |"]


def parse() -> argparse.Namespace:
    parser = arguments.parser(__doc__)
    parser.add_argument("--shape", choices=sorted(forks.SHAPES), help="instead of --base")
    parser.add_argument("--fork", type=int, help="a random adapter forked there, not --adapter")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=32, help="prompt tokens")
    parser.add_argument("--eager", action="store_true")
    forks.add_engines(parser, dtype="bfloat16", share=0.4)
    return parser.parse_args()


def main() -> None:
    args = parse()
    args.batches = [args.batch]
    with tempfile.TemporaryDirectory() as folder:
        base = forks.bare(args.shape, Path(folder)) if args.shape else resolve_base(args.base)
        if args.shape:
            args.load_format = "dummy"
        if args.fork:
            own = Path(folder) / "adapter"
            adapter = speed.make_random(base, own, args.fork, args.load_format)
        else:
            adapter = resolve_adapter(args.adapter)
        for part, (owner, name) in parts().items():
            label(owner, name, part)
        llm = speed.start(base, args, adapter, **speed.sizes(args), **forks.room(args))
        weights = ["a=1", "b=1"] if args.fork else ["positive=1", "simple=1"]
        found = profile(llm, {**forks.GUIDANCE, "pad_weights": weights}, args)
    result = {
        "command": arguments.command(),
        "base": args.shape or args.base,
        "batch": args.batch,
        "dtype": args.dtype,
        "versions": speed.versions(),
        **found,
    }
    arguments.tell(args, {**result, "table": table(result)})


if __name__ == "__main__":
    main()
