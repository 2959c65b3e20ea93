"""What does each depth of the fork cost? Plain vLLM and PAD at several fork layers, in turns, in one process.

    python benchmarks/forks.py --forks 30 29 22 --out F.json
    python benchmarks/forks.py --shape llama-8b --forks 32 31 24 --batches 1 4 16 64 --kv-gib 1.25 --out F

Random adapters: step times need no trained weights. --shape needs none of the base either: a bare config
of that shape, dummy weights, a tokenizer of whole words. Every row of PAD's is guided, under the guards of
the demo adapter; beside it the same engine with nothing guided, and the time of the first token. On a GPU,
also what each engine holds of its memory.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import arguments
import speed

from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.catalog.name_resolution import resolve_base

GUIDANCE: dict[str, Any] = {"pad_weights": ["a=1", "b=1"], "pad_no_repeat": 3, "pad_min_p": 0.15}
"""Of two of a random adapter's dimensions."""

SHAPES: dict[str, dict[str, Any]] = {
    "llama-8b": {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
}
_WORDS = 32000  # of the tokenizer of a bare shape


def bare(shape: str, folder: Path) -> str:
    """A config of this shape and a tokenizer, without weights -> the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    known = {f"w{i}": i for i in range(_WORDS)}
    first = next(iter(known))
    words = Tokenizer(models.WordLevel(known, unk_token=first))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token=first).save_pretrained(folder)
    LlamaConfig(**SHAPES[shape], dtype="bfloat16").save_pretrained(folder)
    return str(folder)


def step_times(base: str, forks: Sequence[int], args: argparse.Namespace) -> dict[str, Any]:
    """records: one a fork and batch, medians over rounds in which all took turns; gpu_gib: what each engine
    took of a GPU's memory, its KV cache among it.
    """
    sizes = speed.sizes(args) | room(args)
    engines: dict[int | None, Any] = {}
    held: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for fork in (None, *forks):
            adapter = None
            if fork is not None:
                own = Path(folder) / str(fork)
                adapter = speed.make_random(base, own, fork, args.load_format)
            before = _gpu_gib()
            engines[fork] = speed.start(base, args, adapter, **sizes)
            held["plain" if fork is None else str(fork)] = round(_gpu_gib() - before, 2)
        plain = engines.pop(None)
        records = [
            record for batch in args.batches for record in _compare(plain, engines, batch, args)
        ]
    return {"records": records, "gpu_gib": held if any(held.values()) else None}


def room(args: argparse.Namespace) -> dict[str, Any]:
    """Of an engine: all prompts of a batch fit into one step; a KV cache of a size that is asked for."""
    room: dict[str, Any] = {"max_num_batched_tokens": max(args.batches) * args.prompt + 2048}
    if args.kv_gib is not None:
        room["kv_cache_memory_bytes"] = int(args.kv_gib * 2**30)
    return room


def _gpu_gib() -> float:
    """In use on the GPU, by whomever; 0 where there is none."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return float((total - free) / 2**30)


def _compare(
    plain: Any, engines: Mapping[int, Any], batch: int, args: argparse.Namespace
) -> list[dict[str, Any]]:
    found: dict[tuple[int | None, bool], list[tuple[float, float]]] = {}
    for turn in range(args.rounds + 1):  # the first warms up
        once = {(None, False): speed.times(plain, batch, args, None)}
        for fork, engine in engines.items():
            once[fork, True] = speed.times(engine, batch, args, GUIDANCE)
            once[fork, False] = speed.times(engine, batch, args, None)
        for key, times in once.items() if turn else ():
            found.setdefault(key, []).append(times)
    return [_record(fork, batch, found) for fork in engines]


def _record(
    fork: int, batch: int, found: Mapping[tuple[int | None, bool], Sequence[tuple[float, float]]]
) -> dict[str, Any]:
    plain, guided, idle = found[None, False], found[fork, True], found[fork, False]
    step = [b[1] / a[1] for a, b in zip(plain, guided, strict=True)]
    return {
        "fork_layer": fork,
        "batch": batch,
        "plain_ms": round(1e3 * statistics.median(t[1] for t in plain), 3),
        "pad_ms": round(1e3 * statistics.median(t[1] for t in guided), 3),
        "ratio": round(statistics.median(step), 3),
        "least": round(min(step), 3),
        "most": round(max(step), 3),
        "unguided": round(
            statistics.median(b[1] / a[1] for a, b in zip(plain, idle, strict=True)), 3
        ),
        "first": round(
            statistics.median(b[0] / a[0] for a, b in zip(plain, guided, strict=True)), 3
        ),
    }


def table(records: Sequence[Mapping[str, Any]], layers: int) -> list[str]:
    lines = [
        "| layers forked | batch | plain | PAD | ratio | nothing guided | first token |",
        "| ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for r in records:
        cells = [str(layers - r["fork_layer"]), str(r["batch"])]
        cells += [f"{r['plain_ms']:.2f} ms", f"{r['pad_ms']:.2f} ms"]
        cells += [f"{r['ratio']:.3f}x ({r['least']:.3f} to {r['most']:.3f})"]
        cells += [f"{r['unguided']:.3f}x", f"{r['first']:.3f}x"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def add_engines(parser: argparse.ArgumentParser, *, dtype: str, share: float) -> None:
    """What `step_times` reads beside `arguments.add_timing`."""
    parser.add_argument("--dtype", default=dtype)
    parser.add_argument("--load-format", default="auto", help="`dummy` times a bare config.json")
    parser.add_argument("--gpu-memory", type=float, default=share, help="share for each engine")
    parser.add_argument("--kv-gib", type=float, help="of each engine's KV cache, on a GPU")


def parse() -> argparse.Namespace:
    parser = arguments.parser(__doc__, adapter=None)
    parser.add_argument("--shape", choices=sorted(SHAPES), help="instead of --base: no weights")
    parser.add_argument("--forks", type=int, nargs="+", required=True, help="fork layers")
    arguments.add_timing(parser, batches=(1, 16), tokens=32, rounds=5)
    add_engines(parser, dtype="bfloat16", share=0.2)
    return parser.parse_args()


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        base = bare(args.shape, Path(folder)) if args.shape else resolve_base(args.base)
        if args.shape:
            args.load_format = "dummy"
        layers = Backbone.from_config(Path(base)).num_layers
        times = step_times(base, args.forks, args)
    arguments.tell(
        args,
        {
            "command": arguments.command(),
            "base": args.shape or args.base,
            "layers": layers,
            "prompt": args.prompt,
            "dtype": args.dtype,
            "compiled": not args.eager,
            "versions": speed.versions(),
            **times,
            "table": table(times["records"], layers),
        },
    )


if __name__ == "__main__":
    main()
