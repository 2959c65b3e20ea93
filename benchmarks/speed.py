"""What does guidance cost? Plain vLLM against PAD, alternated in one process on one machine.

    python benchmarks/speed.py --out benchmarks/results/speed.json        (`make bench`)

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
import platform
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # no second process on the cores
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
# In one process vLLM's own binding puts the threads of compiled code on one core. One core is left
# free, as vLLM leaves one to its engine process.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) - 1)))

import arguments

from pad_vllm.adapter.adapter_folder import save_adapter
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.manifest import read_config
from pad_vllm.adapter.random import random_adapter
from pad_vllm.adapter.shape_checks import module_shapes
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base


def weight_bytes(model: Any) -> int:
    """Bytes of all parameters and buffers, each storage counted once."""
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def resident_mib() -> float:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def start(base: str, args: argparse.Namespace, adapter: str | None, **sizes: Any) -> Any:
    """An engine, plain without an adapter. sizes: its longest text and batch, and the prefix cache."""
    from vllm import LLM

    pad: dict[str, Any] = {}
    load_format = args.load_format
    if adapter is not None:
        settings = {"adapter": adapter, "load_format": args.load_format}
        pad = {
            "logits_processors": ["pad_vllm:PADLogitsProcessor"],
            "additional_config": {"pad": settings},
        }
        load_format = "pad"
    return LLM(
        base,
        load_format=load_format,
        dtype=args.dtype,
        enforce_eager=args.eager,
        gpu_memory_utilization=args.gpu_memory,
        seed=0,
        **sizes,
        **pad,
    )


def sizes(args: argparse.Namespace) -> dict[str, Any]:
    """Of engines whose steps are timed: no larger than they have to be, and nothing is read twice."""
    return {
        "max_model_len": args.prompt + args.tokens + 8,
        "max_num_seqs": max(args.batches),
        "enable_prefix_caching": False,
    }


def prompt_rows(batch: int, length: int) -> list[list[int]]:
    """Prompts of `length` tokens, no two alike."""
    return [[(17 * row + 31 * i) % 1000 + 100 for i in range(length)] for row in range(batch)]


def seconds(llm: Any, batch: int, tokens: int, prompt: int, extra: dict[str, Any] | None) -> float:
    """Time to generate `tokens` tokens for `batch` prompts of `prompt` tokens."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": row} for row in prompt_rows(batch, prompt)]
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, extra_args=extra)
    begin = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - begin


def times(
    llm: Any, batch: int, args: argparse.Namespace, extra: dict[str, Any] | None
) -> tuple[float, float]:
    """Seconds to the first token, and of a step behind it."""
    first = seconds(llm, batch, 1, args.prompt, extra)
    whole = seconds(llm, batch, args.tokens + 1, args.prompt, extra)
    return first, (whole - first) / args.tokens


def step_time(
    llm: Any, batch: int, args: argparse.Namespace, extra: dict[str, Any] | None
) -> float:
    return times(llm, batch, args, extra)[1]


def compare(
    plain: Any, pad: Any, batch: int, args: argparse.Namespace, guidance: dict[str, Any]
) -> dict[str, Any]:
    """Alternated rounds of one batch size, after a warm-up: medians, and the median of the ratios."""
    step_time(plain, batch, args, None), step_time(pad, batch, args, guidance)
    plain_times, pad_times, idle_times = [], [], []
    for _ in range(args.rounds):
        plain_times.append(step_time(plain, batch, args, None))
        pad_times.append(step_time(pad, batch, args, guidance))
        idle_times.append(step_time(pad, batch, args, None))
    ratios = [b / a for a, b in zip(plain_times, pad_times, strict=True)]
    idle = [b / a for a, b in zip(plain_times, idle_times, strict=True)]
    return {
        "batch": batch,
        "plain_ms": round(statistics.median(plain_times) * 1e3, 3),
        "pad_ms": round(statistics.median(pad_times) * 1e3, 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "ratio_unguided_rows": round(statistics.median(idle), 3),
    }


def make_random(base: str, folder: Path, fork_layer: int | None, load_format: str) -> str:
    """A random adapter for a base that has none, forked there, or else at the top quarter -> its folder."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base)
    layers = config.get_text_config().num_hidden_layers
    fork = round(layers * 0.75) if fork_layer is None else min(fork_layer, layers)
    adapter = random_adapter(
        # A bare config has no weights to be known by.
        (Backbone.from_config if load_format == "dummy" else Backbone.from_checkpoint)(Path(base)),
        fork,
        ("a", "b", "c"),
        16,
        16,
        shapes={} if fork == layers else module_shapes(config),
        std=0.01,
        seed=0,
        constants=fork == layers,
    )
    save_adapter(adapter, folder, "A random adapter, for timing only.\n")
    return str(folder)


def versions() -> dict[str, str]:
    import torch
    import vllm

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
        "threads": str(torch.get_num_threads()),
    }


def table(records: list[dict[str, Any]]) -> str:
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
    parser = arguments.parser(__doc__, out="benchmarks/results/speed.json")
    arguments.add_timing(parser, batches=(1, 4, 16, 32), tokens=64, rounds=5)
    parser.add_argument("--random-adapter", type=Path, help="make a random one here and use it")
    parser.add_argument(
        "--fork-layer",
        type=int,
        help="of the random one; the base's number of layers or more: heads only",
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--load-format", default="auto", help="`dummy` times a bare config.json")
    parser.add_argument("--gpu-memory", type=float, default=0.4, help="share for each engine")
    return parser.parse_args()


def main() -> None:
    args = parse()
    base = resolve_base(args.base)
    if args.random_adapter:
        adapter = make_random(base, args.random_adapter, args.fork_layer, args.load_format)
    else:
        adapter = resolve_adapter(args.adapter)
    config = read_config(adapter)
    memory = [resident_mib()]
    plain = start(base, args, None, **sizes(args))
    memory.append(resident_mib())
    pad = start(base, args, adapter, **sizes(args))
    memory.append(resident_mib())
    added = [round(after - before, 1) for before, after in itertools.pairwise(memory)]
    held = [llm.apply_model(weight_bytes)[0] for llm in (plain, pad)]
    guidance = {"pad_weights": [f"{name}=1" for name in config.dimensions]}
    records = [compare(plain, pad, batch, args, guidance) for batch in args.batches]
    result = {
        "command": arguments.command(),
        "backbone": config.backbone.name,
        "layers": config.backbone.num_layers,
        "fork_layer": config.fork_layer,
        "dtype": args.dtype,
        "compiled": not args.eager,
        "added_memory_mib": {"plain": added[0], "pad": added[1]},
        "weights_mib": {"plain": round(held[0] / 2**20, 1), "pad": round(held[1] / 2**20, 1)},
        "versions": versions(),
        "records": records,
    }
    print(table(records))
    print(f"registered weights: plain {held[0] / 2**20:.1f} MiB, PAD {held[1] / 2**20:.1f} MiB")
    print(f"added to the process: plain {added[0]:.0f} MiB, PAD {added[1]:.0f} MiB")
    print(json.dumps(result))
    arguments.report(args.out, result)


if __name__ == "__main__":
    main()
