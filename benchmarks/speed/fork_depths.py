"""What does each depth of the fork cost? Plain vLLM and PAD at several fork layers, in turns, in one process.

    python -m benchmarks.speed.fork_depths --forks 30 29 22 --out F.json
    python -m benchmarks.speed.fork_depths --shape llama-8b --forks 32 31 24 --kv-gib 1.25 --out F.json
    python -m benchmarks.speed.fork_depths --instructions --forks 7 12 15 22 --out F.json

Random adapters: step times need no trained weights. --shape needs none of the base either: a bare config
of that shape, dummy weights, a tokenizer of whole words. Every row of PAD's is guided, under the guards of
the demo adapter; beside it the same engine with nothing guided, and the time of the first token. On a GPU,
also how much of its memory each engine takes. With --instructions there is no adapter: the forked layers
read an instruction, and the result has the time that a new sentence takes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, bare_models, fork_step_times, timed_engines
from pad_vllm.adapter.backbone.backbone import Backbone


def table(records: Sequence[Mapping[str, Any]], layers: int) -> list[str]:
    """Markdown, a line a record; layers: of the base."""
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


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(__doc__, adapter=None)
    parser.add_argument(
        "--shape", choices=sorted(bare_models.SHAPES), help="instead of --base: no weights"
    )
    parser.add_argument(
        "--instructions", action="store_true", help="the forked layers read one; no adapter"
    )
    parser.add_argument("--forks", type=int, nargs="+", required=True, help="fork layers")
    arguments.add_timing_options(parser, batches=(1, 16), tokens=32, rounds=5)
    fork_step_times.add_fork_engine_options(parser, dtype="bfloat16", gpu_memory=0.2)
    return parser.parse_args()


def main() -> None:
    """See the module's docstring."""
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        base = bare_models.base_of(args, folder)
        layers = Backbone.from_config(Path(base)).num_layers
        times = fork_step_times.measure_fork_step_times(
            base, args.forks, args, instructions=args.instructions
        )
    result = {
        "command": arguments.command_line(),
        "base": args.shape or args.base,
        "layers": layers,
        "prompt": args.prompt,
        "dtype": args.dtype,
        "compiled": not args.eager,
        "versions": timed_engines.machine_and_versions(),
        **times,
        "table": table(times["records"], layers),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
