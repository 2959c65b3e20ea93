"""Where does the time of a guided step go? What PAD does in it, part by part, and the kernels it launches.

    python -m benchmarks.speed.step_profile --batch 16 --out P.json
    python -m benchmarks.speed.step_profile --shape llama-8b --fork 32 --batch 64 --kv-gib 2 --out P.json

One engine, every row guided under the guards of the demo adapter; `torch.profiler` looks at some steps
after warm-up. A part's host time is its own call's, its device time that of the kernels it launched (none on
a CPU, where both are one). The profiler itself takes time: compare shares rather than sums.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, bare_models, fork_step_times, timed_engines
from benchmarks.common.random_adapter import save_random_adapter
from pad_vllm.catalog.name_resolution import resolve_adapter

LABEL_PREFIX = "pad: "


def profiled_functions() -> dict[str, tuple[Any, str]]:
    """Name of a part -> the class or module that has its function, and the function's name there."""
    import torch

    from pad_vllm.engines.shared.shared_rewards import SharedRewards
    from pad_vllm.kernels import kernel_choice
    from pad_vllm.serving.worker.answer_token_reader import V1AnswerTokenReader, V2AnswerTokenReader
    from pad_vllm.serving.worker.batch_slots import BatchSlots
    from pad_vllm.serving.worker.logits_processor import PADLogitsProcessor
    from pad_vllm.serving.worker.outcome_table import OutcomeTable
    from pad_vllm.serving.worker.step_counters import StepCounters

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rule = kernel_choice.rule_for_device(device)
    return {
        "all of PAD": (PADLogitsProcessor, "apply"),
        "which rows": (BatchSlots, "guided_rows"),
        "candidates": (rule, "candidates"),
        "rewards": (SharedRewards, "rewards"),
        "text, V2": (V2AnswerTokenReader, "read"),
        "text, V1": (V1AnswerTokenReader, "read"),
        "guards": (rule, "capped_candidates"),
        "scores written": (rule, "guide"),
        "counted": (StepCounters, "count_step"),
        "answers told": (OutcomeTable, "count_step"),
    }


def label_calls(owner: Any, name: str, part: str) -> None:
    """Have the profiler list every call of a function under a part's name.

    Args:
        owner: The class or module that has the function.
        name: The function's name there.
        part: The name it is listed under.
    """
    from torch.profiler import record_function

    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def labelled(*args: Any, **kwargs: Any) -> Any:
        with record_function(f"{LABEL_PREFIX}{part}"):
            return original(*args, **kwargs)

    setattr(owner, name, labelled)


def profile(llm: Any, guidance: Mapping[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Profile some guided steps of an engine.

    Args:
        llm: The engine.
        guidance: extra_args of every request.
        args: With --batch, --tokens and --prompt.

    Returns:
        See `summarize_events`.
    """
    import torch
    from torch.profiler import ProfilerActivity

    def generate() -> None:
        timed_engines.generation_seconds(llm, args.batch, args.tokens, args.prompt, dict(guidance))

    on_gpu = torch.cuda.is_available()
    for _ in range(2):
        generate()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        generate()
    return summarize_events(profiler.key_averages(), args.tokens, list(profiled_functions()))


def summarize_events(events: Sequence[Any], steps: int, parts: Sequence[str]) -> dict[str, Any]:
    """Milliseconds a step from the profiler's averages.

    Args:
        events: Of the profiler; their times are microseconds.
        steps: How many steps they add up.
        parts: Names of the labelled parts.

    Returns:
        parts: {name: {host, device}}; device: of all kernels; kernels: [{name, ms, count}], the longest 40.
    """
    times: dict[str, dict[str, float]] = {}
    kernels = []
    for event in events:
        part = event.key.removeprefix(LABEL_PREFIX)
        labelled = event.key.startswith(LABEL_PREFIX)
        if labelled and part in parts and event.cpu_time_total:
            times[part] = {
                "host": round(event.cpu_time_total / 1e3 / steps, 4),
                "device": round(event.device_time_total / 1e3 / steps, 4),
            }
        elif "cuda" in str(event.device_type).lower() and not labelled:
            ms = event.self_device_time_total / 1e3 / steps
            kernels.append({"name": event.key, "ms": round(ms, 4), "count": event.count})
    kernels.sort(key=lambda k: -float(k["ms"]))
    return {
        "parts": {name: times[name] for name in parts if name in times},
        "device": round(sum(float(k["ms"]) for k in kernels), 3),
        "kernels": kernels[:40],
    }


def table(result: Mapping[str, Any]) -> list[str]:
    """Markdown, a line a part."""
    lines = ["| part | host, ms a step | device, ms a step |", "| --- | ---: | ---: |"]
    lines += [
        f"| {name} | {times['host']:.3f} | {times['device']:.3f} |"
        for name, times in result["parts"].items()
    ]
    return [*lines, f"| all kernels of a step, the base's among them | | {result['device']:.3f} |"]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(__doc__)
    parser.add_argument("--shape", choices=sorted(bare_models.SHAPES), help="instead of --base")
    parser.add_argument("--fork", type=int, help="a random adapter forked there, not --adapter")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=32, help="prompt tokens")
    parser.add_argument("--eager", action="store_true")
    fork_step_times.add_fork_engine_options(parser, dtype="bfloat16", gpu_memory=0.4)
    return parser.parse_args()


def main() -> None:
    """See the module's docstring."""
    args = parse()
    args.batches = [args.batch]
    with tempfile.TemporaryDirectory() as folder:
        base = bare_models.base_of(args, folder)
        if args.fork:
            adapter_folder = Path(folder) / "adapter"
            adapter = save_random_adapter(base, adapter_folder, args.fork, args.load_format)
        else:
            adapter = resolve_adapter(args.adapter)
        for part, (owner, name) in profiled_functions().items():
            label_calls(owner, name, part)
        sizes = timed_engines.engine_sizes(args) | fork_step_times.token_and_cache_sizes(args)
        llm = timed_engines.start_engine(base, args, adapter, **sizes)
        weights = ["a=1", "b=1"] if args.fork else ["positive=1", "simple=1"]
        profiled = profile(llm, {**fork_step_times.GUIDANCE, "pad_weights": weights}, args)
    result = {
        "command": arguments.command_line(),
        "base": args.shape or args.base,
        "batch": args.batch,
        "dtype": args.dtype,
        "versions": timed_engines.machine_and_versions(),
        **profiled,
    }
    arguments.print_and_write(args, {**result, "table": table(result)})


if __name__ == "__main__":
    main()
