"""What does depth buy, and what does it cost? Wins against step time, by adapter and depth of its fork.

    python -m benchmarks.quality.wins_vs_step_time STEERING.json --row PAD=30 --row trunk=22 --out F.json

STEERING: what `pad-vllm steer ... --beside trunk=ADAPTER` wrote; a row names one of its adapters ("PAD" is
the first) and its fork layer. Step times need no trained weights: random adapters forked at those layers and
plain vLLM live in one process and take turns, every row guided. Wins are the mean over dimensions and over
judges that trained nothing; beside them stand perplexity and repetition.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import arguments, fork_step_times, timed_engines
from benchmarks.quality.wins_vs_perplexity import StrengthPoint, read_lines
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.catalog.name_resolution import resolve_base


def mean_points(
    result: Mapping[str, Any], temperature: float, training_scorers: Mapping[str, str]
) -> dict[str, list[StrengthPoint]]:
    """Means over dimensions and judges.

    Args:
        result: Of `pad-vllm steer`.
        temperature: Of the answers.
        training_scorers: Dimension -> the scorer that trained it, which does not judge it here.

    Returns:
        Adapter -> its points, weakest first.
    """
    points_at: dict[str, dict[float, list[StrengthPoint]]] = {}
    for (dimension, judge), lines in read_lines([result], temperature).items():
        if judge in {"teacher", training_scorers.get(dimension)}:
            continue
        for name, points in lines.items():
            for point in points:
                points_at.setdefault(name, {}).setdefault(point.strength, []).append(point)
    return {
        name: [
            StrengthPoint(*(statistics.mean(column) for column in zip(*points, strict=True)))
            for _, points in sorted(by_strength.items())
        ]
        for name, by_strength in points_at.items()
    }


def result_rows(
    points: Mapping[str, Sequence[StrengthPoint]],
    fork_layers: Mapping[str, int],
    times: Sequence[Mapping[str, Any]],
    layers: int,
) -> list[dict[str, Any]]:
    """A row a named adapter and strength.

    Args:
        points: Of `mean_points`.
        fork_layers: Adapter -> its fork layer.
        times: Records of `measure_fork_step_times`.
        layers: Of the base.

    Raises:
        ValueError: For an adapter that the result does not have.
    """
    if missing := [name for name in fork_layers if name not in points]:
        raise ValueError(
            f"--row {missing[0]}: the result knows {', '.join(sorted(points))}, the adapters it measured"
        )
    return [
        {"row": name, "forked_layers": layers - fork}
        | {k: round(v, 3) for k, v in point._asdict().items()}
        | {f"step_{t['batch']}": t["ratio"] for t in times if t["fork_layer"] == fork}
        for name, fork in fork_layers.items()
        for point in points[name]
    ]


def table(rows: Sequence[Mapping[str, Any]], batches: Sequence[int]) -> list[str]:
    """Markdown, a line a row; batches: whose step times get a column."""
    steps = "".join(f" step, batch {batch} |" for batch in batches)
    lines = [
        f"| row | layers forked | strength | wins | perplexity | repeated |{steps}",
        f"| --- | ---: | ---: | ---: | ---: | ---: |{' ---: |' * len(batches)}",
    ]
    for r in rows:
        cells = [r["row"], str(r["forked_layers"]), f"{r['strength']:g}", f"{r['wins']:.0%}"]
        cells += [f"{r['perplexity']:.2f}x", f"{r['repeated']:+.1%}"]
        cells += [f"{r[f'step_{batch}']:.2f}x" for batch in batches]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(rows: Sequence[Mapping[str, Any]], batch: int, path: Path) -> None:
    """Each adapter at the strength that wins most.

    Args:
        rows: Of `result_rows`.
        batch: Whose step time is on the axis.
        path: The picture's file.
    """
    figure = Figure(figsize=(6, 4), dpi=110, layout="constrained")
    panel = figure.subplots()
    for name in dict.fromkeys(r["row"] for r in rows):
        best = max((r for r in rows if r["row"] == name), key=lambda r: r["wins"])
        position = (best[f"step_{batch}"], 100 * best["wins"])
        panel.plot(*position, "o", markersize=6)
        label = f" {name} ({best['forked_layers']} layers, {best['perplexity']:.2f}x)"
        panel.annotate(label, position, fontsize=8)
    panel.set_xlabel(f"step time over plain vLLM, batch {batch}")
    panel.set_ylabel("wins, %, judges that trained nothing")
    panel.margins(x=0.4, y=0.2)
    figure.savefig(path)


def _name_and_layer(text: str) -> tuple[str, int]:
    name, fork = arguments.name_and_value(text)
    return name, int(fork)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(__doc__, adapter=None)
    parser.add_argument("steering", type=Path)
    parser.add_argument(
        "--row", type=_name_and_layer, action="append", required=True, help="NAME=FORK_LAYER"
    )
    parser.add_argument(
        "--taught",
        type=arguments.name_and_value,
        action="append",
        default=[],
        help="DIMENSION=SCORER: the scorer trained the dimension, and does not judge it",
    )
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--picture", type=Path)
    arguments.add_timing_options(parser, batches=(1, 16), tokens=24, rounds=5)
    fork_step_times.add_fork_engine_options(parser, dtype="float32", gpu_memory=0.12)
    return parser.parse_args()


def main() -> None:
    """See the module's docstring."""
    args = parse()
    base, fork_layers = resolve_base(args.base), dict(args.row)
    points = mean_points(json.loads(args.steering.read_text()), args.temperature, dict(args.taught))
    layers = Backbone.from_config(Path(base)).num_layers
    result_rows(points, fork_layers, (), layers)  # raises before an hour is spent
    depths = sorted(set(fork_layers.values()), reverse=True)
    times = fork_step_times.measure_fork_step_times(base, depths, args)["records"]
    rows = result_rows(points, fork_layers, times, layers)
    result = {
        "command": arguments.command_line(),
        "versions": timed_engines.machine_and_versions(),
        "dtype": args.dtype,
        "compiled": not args.eager,
        "times": times,
        "rows": rows,
        "table": table(rows, args.batches),
    }
    arguments.print_and_write(args, result, partial(draw, rows, max(args.batches)))


if __name__ == "__main__":
    main()
