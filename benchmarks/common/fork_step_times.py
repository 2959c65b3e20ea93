"""Step times of plain vLLM and of PAD at several fork layers, which take turns in one process.

In: a base, fork layers, parsed options. Out: a record a fork layer and batch. The adapters are random: step
times need no trained weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import timed_engines
from benchmarks.common.random_adapter import save_random_adapter

GUIDANCE: dict[str, Any] = {"pad_weights": ["a=1", "b=1"], "pad_no_repeat": 3, "pad_min_p": 0.15}
"""Arguments of a request: two dimensions of a random adapter, under the guards of the demo adapter."""

INSTRUCTION: dict[str, Any] = {
    "pad_preference": "Answer in a funny way, with jokes and humor.",
    "pad_no_repeat": 3,
    "pad_min_p": 0.03,
}
"""Arguments of a request to an engine with instructions."""

Times = Sequence[tuple[float, float]]
"""A round each: seconds to the first token, and of a step after it."""

TimesByEngine = Mapping[tuple[int | None, bool], Times]
"""(fork layer, None for plain vLLM; whether the rows were guided) -> times."""


def add_fork_engine_options(
    parser: argparse.ArgumentParser, *, dtype: str, gpu_memory: float
) -> None:
    """What `measure_fork_step_times` reads beside `add_timing_options`.

    Args:
        parser: Gets the options of `add_engine_options`, and --kv-gib.
        dtype: Default type of the weights.
        gpu_memory: Default share of a GPU's memory for each engine.
    """
    timed_engines.add_engine_options(parser, dtype=dtype, gpu_memory=gpu_memory)
    parser.add_argument("--kv-gib", type=float, help="of each engine's KV cache, on a GPU")


def token_and_cache_sizes(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of vllm.LLM: all prompts of a batch fit into one step; a KV cache of --kv-gib, if given."""
    sizes: dict[str, Any] = {"max_num_batched_tokens": max(args.batches) * args.prompt + 2048}
    if args.kv_gib is not None:
        sizes["kv_cache_memory_bytes"] = int(args.kv_gib * 2**30)
    return sizes


def measure_fork_step_times(
    base: str, fork_layers: Sequence[int], args: argparse.Namespace, *, instructions: bool = False
) -> dict[str, Any]:
    """Time every fork layer and batch size, in rounds in which all engines take turns.

    Args:
        base: Folder of the base.
        fork_layers: Of the random adapters; the base's number of layers is heads only.
        args: With what `add_fork_engine_options` and `add_timing_options` add.
        instructions: No adapter: the forked layers read an instruction.

    Returns:
        records: one a fork layer and batch, medians over the rounds; gpu_gib: what each engine took of a
        GPU's memory, its KV cache included, None on a CPU; new_sentence_ms: by fork layer, how much later the
        first request with a sentence is, None without instructions.
    """
    sizes = timed_engines.engine_sizes(args) | token_and_cache_sizes(args)
    engines: dict[int | None, Any] = {}
    gpu_gib: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for fork in (None, *fork_layers):
            adapter = settings = None
            if fork is not None and instructions:
                settings = {"instructions": True, "fork_layer": fork, "max_instructions": 16}
            elif fork is not None:
                adapter_folder = Path(folder) / str(fork)
                adapter = save_random_adapter(base, adapter_folder, fork, args.load_format)
            before = _used_gpu_gib()
            engines[fork] = timed_engines.start_engine(base, args, adapter, settings, **sizes)
            gpu_gib["plain" if fork is None else str(fork)] = round(_used_gpu_gib() - before, 2)
        plain = engines.pop(None)
        guidance = INSTRUCTION if instructions else GUIDANCE
        records = [
            record
            for batch in args.batches
            for record in _time_in_turns(plain, engines, batch, args, guidance)
        ]
        new = {}
        if instructions:
            new = {str(fork): _new_sentence_ms(engine, args) for fork, engine in engines.items()}
    return {
        "records": records,
        "gpu_gib": gpu_gib if any(gpu_gib.values()) else None,
        "new_sentence_ms": new or None,
    }


def _new_sentence_ms(engine: Any, args: argparse.Namespace) -> float:
    """Milliseconds by which a request with a sentence that the engine has not read is later: the median."""

    def milliseconds(sentence: str) -> float:
        guidance = {**INSTRUCTION, "pad_preference": sentence}
        return 1e3 * timed_engines.generation_seconds(engine, 1, 1, args.prompt, guidance)

    differences = []
    for number in range(args.rounds + 1):
        sentence = f"{INSTRUCTION['pad_preference']} {'Also ' * (number % 3)}number {number}."
        differences.append(milliseconds(sentence) - milliseconds(sentence))
    return round(statistics.median(differences[1:]), 2)


def _used_gpu_gib() -> float:
    """GiB in use on the GPU, by any process; 0 where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return float((total - free) / 2**30)


def _time_in_turns(
    plain: Any,
    engines: Mapping[int, Any],
    batch: int,
    args: argparse.Namespace,
    guidance: dict[str, Any],
) -> list[dict[str, Any]]:
    measure = timed_engines.first_token_and_step_seconds
    times: dict[tuple[int | None, bool], list[tuple[float, float]]] = {}
    for number in range(args.rounds + 1):  # the first round warms up
        this_round = {(None, False): measure(plain, batch, args, None)}
        for fork, engine in engines.items():
            this_round[fork, True] = measure(engine, batch, args, guidance)
            this_round[fork, False] = measure(engine, batch, args, None)
        for key, seconds in this_round.items() if number else ():
            times.setdefault(key, []).append(seconds)
    return [fork_record(fork, batch, times) for fork in engines]


def fork_record(fork: int, batch: int, times: TimesByEngine) -> dict[str, Any]:
    """Medians over the rounds; a ratio is of times of the same round.

    Args:
        fork: Fork layer of the record.
        batch: Its batch size.
        times: Of plain vLLM, and of this fork layer guided and unguided, round by round.
    """
    plain, guided, unguided = times[None, False], times[fork, True], times[fork, False]
    step_ratios = [b[1] / a[1] for a, b in zip(plain, guided, strict=True)]
    unguided_ratios = [b[1] / a[1] for a, b in zip(plain, unguided, strict=True)]
    first_token_ratios = [b[0] / a[0] for a, b in zip(plain, guided, strict=True)]
    return {
        "fork_layer": fork,
        "batch": batch,
        "plain_ms": round(1e3 * statistics.median(t[1] for t in plain), 3),
        "pad_ms": round(1e3 * statistics.median(t[1] for t in guided), 3),
        "ratio": round(statistics.median(step_ratios), 3),
        "least": round(min(step_ratios), 3),
        "most": round(max(step_ratios), 3),
        "unguided": round(statistics.median(unguided_ratios), 3),
        "first": round(statistics.median(first_token_ratios), 3),
    }
