"""What does guidance cost? Step time of plain vLLM and of PAD's `shared` engine, alternated in one process.

    python -m benchmarks.speed.step_time --out benchmarks/results/speed.json        (`make bench`)

Two compiled engines live side by side and take turns on the same batch, every row of PAD's guided.
A step's time is (time for N + 1 tokens - time for 1 token) / N, so prefill drops out. Also measured:
what each engine adds to the process's memory (a second copy of the backbone would show), and the bytes
of its registered weights by distinct storage (vLLM's CPU build keeps repacked linear weights outside).
Prints a table, then one JSON line; --out writes the JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, timed_engines
from benchmarks.common.random_adapter import save_random_adapter
from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base


def weight_bytes(model: Any) -> int:
    """Bytes of all parameters and buffers, each storage counted once."""
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def resident_mib() -> float:
    """MiB of this process that are in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def compare(
    plain: Any, pad: Any, batch: int, args: argparse.Namespace, guidance: dict[str, Any]
) -> dict[str, Any]:
    """Time one batch size in alternated rounds, after a warm-up.

    Args:
        plain: The engine without PAD.
        pad: The engine with PAD, timed guided and unguided.
        batch: Number of prompts.
        args: With the timing options.
        guidance: extra_args of a guided request.

    Returns:
        Medians over the rounds; ratios are of times of the same round.
    """
    step = timed_engines.step_seconds
    step(plain, batch, args, None)
    step(pad, batch, args, guidance)
    plain_times, pad_times, unguided_times = [], [], []
    for _ in range(args.rounds):
        plain_times.append(step(plain, batch, args, None))
        pad_times.append(step(pad, batch, args, guidance))
        unguided_times.append(step(pad, batch, args, None))
    ratios = [b / a for a, b in zip(plain_times, pad_times, strict=True)]
    unguided_ratios = [b / a for a, b in zip(plain_times, unguided_times, strict=True)]
    return {
        "batch": batch,
        "plain_ms": round(statistics.median(plain_times) * 1e3, 3),
        "pad_ms": round(statistics.median(pad_times) * 1e3, 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "ratio_unguided_rows": round(statistics.median(unguided_ratios), 3),
    }


def table(records: list[dict[str, Any]]) -> str:
    """Markdown, a line a batch size."""
    lines = [
        "| batch | plain ms/step | PAD ms/step | ratio | ratio, nothing guided |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['batch']} | {r['plain_ms']:.1f} | {r['pad_ms']:.1f} | {r['ratio']:.2f}x "
        f"({r['ratio_min']:.2f} to {r['ratio_max']:.2f}) | {r['ratio_unguided_rows']:.2f}x |"
        for r in records
    ]
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(__doc__, out="benchmarks/results/speed.json")
    arguments.add_timing_options(parser, batches=(1, 4, 16, 32), tokens=64, rounds=5)
    parser.add_argument("--random-adapter", type=Path, help="make a random one here and use it")
    parser.add_argument(
        "--fork-layer",
        type=int,
        help="of the random one; the base's number of layers or more: heads only",
    )
    timed_engines.add_engine_options(parser, dtype="bfloat16", gpu_memory=0.4)
    return parser.parse_args()


def main() -> None:
    """See the module's docstring."""
    args = parse()
    base = resolve_base(args.base)
    if args.random_adapter:
        adapter = save_random_adapter(base, args.random_adapter, args.fork_layer, args.load_format)
    else:
        adapter = resolve_adapter(args.adapter)
    config = read_config(adapter)
    sizes = timed_engines.engine_sizes(args)
    memory = [resident_mib()]
    plain = timed_engines.start_engine(base, args, None, **sizes)
    memory.append(resident_mib())
    pad = timed_engines.start_engine(base, args, adapter, **sizes)
    memory.append(resident_mib())
    plain_added, pad_added = (round(b - a, 1) for a, b in itertools.pairwise(memory))
    plain_weights, pad_weights = (llm.apply_model(weight_bytes)[0] / 2**20 for llm in (plain, pad))
    guidance = {"pad_weights": [f"{name}=1" for name in config.dimensions]}
    records = [compare(plain, pad, batch, args, guidance) for batch in args.batches]
    result = {
        "command": arguments.command_line(),
        "backbone": config.backbone.name,
        "layers": config.backbone.num_layers,
        "fork_layer": config.fork_layer,
        "dtype": args.dtype,
        "compiled": not args.eager,
        "added_memory_mib": {"plain": plain_added, "pad": pad_added},
        "weights_mib": {"plain": round(plain_weights, 1), "pad": round(pad_weights, 1)},
        "versions": timed_engines.machine_and_versions(),
        "records": records,
    }
    print(table(records))
    print(f"registered weights: plain {plain_weights:.1f} MiB, PAD {pad_weights:.1f} MiB")
    print(f"added to the process: plain {plain_added:.0f} MiB, PAD {pad_added:.0f} MiB")
    print(json.dumps(result))
    arguments.write_result(args.out, result)


if __name__ == "__main__":
    main()
