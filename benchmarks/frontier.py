"""What does depth buy, and what does it cost? Alignment against step time, a point a way to train and depth.

    python benchmarks/frontier.py STEERING.json --row PAD=30 --row trunk=22 --out F.json --picture F.png

STEERING: what `pad-vllm evaluate --steering ... --beside trunk=ADAPTER` wrote; a row names one of its
adapters ("PAD" is the first) and the layer where that is forked. Step times need no trained weights: random
adapters forked at those layers and plain vLLM live in one process and take turns, every row guided.
Alignment is the mean of wins over dimensions and over judges that trained nothing; beside it stand
perplexity and repetition.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import arguments
import forks
import speed
from matplotlib.figure import Figure
from pareto import Point, read

from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.catalog.name_resolution import resolve_base


def alignment(
    result: Mapping[str, Any], temperature: float, taught: Mapping[str, str]
) -> dict[str, list[Point]]:
    """Row -> its strengths, each the mean over dimensions and judges.

    taught: dimension -> the scorer that taught it, which judges nothing here.
    """
    found: dict[str, dict[float, list[Point]]] = {}
    for (dimension, judge), lines in read([result], temperature).items():
        if judge in {"teacher", taught.get(dimension)}:
            continue
        for row, points in lines.items():
            for point in points:
                found.setdefault(row, {}).setdefault(point.strength, []).append(point)
    return {
        row: [
            Point(*(statistics.mean(column) for column in zip(*points, strict=True)))
            for _, points in sorted(strengths.items())
        ]
        for row, strengths in found.items()
    }


def rows(
    aligned: Mapping[str, Sequence[Point]],
    named: Mapping[str, int],
    times: Sequence[Mapping[str, Any]],
    layers: int,
) -> list[dict[str, Any]]:
    """One a named row and strength. Raises ValueError for a row that the result does not have."""
    if missing := [name for name in named if name not in aligned]:
        raise ValueError(
            f"--row {missing[0]}: the result knows {', '.join(sorted(aligned))}, the adapters it measured"
        )
    return [
        {"row": name, "forked_layers": layers - fork}
        | {k: round(v, 3) for k, v in point._asdict().items()}
        | {f"step_{t['batch']}": t["ratio"] for t in times if t["fork_layer"] == fork}
        for name, fork in named.items()
        for point in aligned[name]
    ]


def table(found: Sequence[Mapping[str, Any]], batches: Sequence[int]) -> list[str]:
    steps = "".join(f" step, batch {batch} |" for batch in batches)
    lines = [
        f"| row | layers forked | strength | wins | perplexity | repeated |{steps}",
        f"| --- | ---: | ---: | ---: | ---: | ---: |{' ---: |' * len(batches)}",
    ]
    for r in found:
        cells = [r["row"], str(r["forked_layers"]), f"{r['strength']:g}", f"{r['wins']:.0%}"]
        cells += [f"{r['perplexity']:.2f}x", f"{r['repeated']:+.1%}"]
        cells += [f"{r[f'step_{batch}']:.2f}x" for batch in batches]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(found: Sequence[Mapping[str, Any]], batch: int, path: Path) -> None:
    figure = Figure(figsize=(6, 4), dpi=110, layout="constrained")
    panel = figure.subplots()
    for row in dict.fromkeys(r["row"] for r in found):
        own = [r for r in found if r["row"] == row]
        best = max(own, key=lambda r: r["wins"])
        panel.plot(best[f"step_{batch}"], 100 * best["wins"], "o", markersize=6)
        panel.annotate(
            f" {row} ({best['forked_layers']} layers, {best['perplexity']:.2f}x)",
            (best[f"step_{batch}"], 100 * best["wins"]),
            fontsize=8,
        )
    panel.set_xlabel(f"step time over plain vLLM, batch {batch}")
    panel.set_ylabel("wins, %, judges that trained nothing")
    panel.margins(x=0.4, y=0.2)
    figure.savefig(path)


def _row(text: str) -> tuple[str, int]:
    name, fork = arguments.pair(text)
    return name, int(fork)


def parse() -> argparse.Namespace:
    parser = arguments.parser(__doc__, adapter=None)
    parser.add_argument("steering", type=Path)
    parser.add_argument("--row", type=_row, action="append", required=True, help="NAME=FORK_LAYER")
    parser.add_argument(
        "--taught",
        type=arguments.pair,
        action="append",
        default=[],
        help="DIMENSION=SCORER, no judge then",
    )
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--picture", type=Path)
    arguments.add_timing(parser, batches=(1, 16), tokens=24, rounds=5)
    forks.add_engines(parser, dtype="float32", share=0.12)
    return parser.parse_args()


def main() -> None:
    args = parse()
    base, named = resolve_base(args.base), dict(args.row)
    result = json.loads(args.steering.read_text())
    aligned = alignment(result, args.temperature, dict(args.taught))
    layers = Backbone.from_config(Path(base)).num_layers
    rows(aligned, named, (), layers)  # raises before an hour is spent
    times = forks.step_times(base, sorted(set(named.values()), reverse=True), args)["records"]
    found = rows(aligned, named, times, layers)
    arguments.tell(
        args,
        {
            "command": arguments.command(),
            "versions": speed.versions(),
            "dtype": args.dtype,
            "compiled": not args.eager,
            "times": times,
            "rows": found,
            "table": table(found, args.batches),
        },
        partial(draw, found, max(args.batches)),
    )


if __name__ == "__main__":
    main()
