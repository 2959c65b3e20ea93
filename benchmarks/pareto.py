"""How much text does a win cost? Wins against perplexity, a line a method, from results that exist.

    python benchmarks/pareto.py RESULT.json... --out pareto.json --picture pareto.png

RESULT: what `pad-vllm evaluate --steering ... --beta B --beta B --beside NAME=ADAPTER` and `peers.py` wrote,
several strengths a method. Asking in the prompt is a point. Strengths are no common unit, so methods are also
compared at equal wins: perplexity and repetition at --wins, between the two strengths that lie around it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import arguments
from matplotlib.figure import Figure

PROMPTING = "prompting"
_GUIDED = re.compile(r"(?P<method>\S+) \+(?P<dimension>[^+ ]+)")


class Point(NamedTuple):
    """A method at one strength."""

    strength: float
    wins: float
    perplexity: float  # over the unguided answers'
    repeated: float  # 4-grams, share more than the unguided answers'


UNGUIDED = Point(0.0, 0.5, 1.0, 0.0)
"""Where every method begins."""

Lines = dict[str, list[Point]]
"""Method -> its points, weakest first."""


def read(results: Sequence[Mapping[str, Any]], temperature: float) -> dict[tuple[str, str], Lines]:
    """By dimension and judge."""
    found: dict[tuple[str, str], Lines] = defaultdict(lambda: defaultdict(list))
    for record in _records(results, temperature):
        method = _method(record["name"])
        for dimension, judges in record["wins"].items() if method else ():
            for judge, (share, *_) in judges.items():
                point = Point(record["beta"], share, record["perplexity"], record["repeated_more"])
                found[dimension, judge][method].append(point)
    return {key: {m: sorted(points) for m, points in lines.items()} for key, lines in found.items()}


def _records(results: Sequence[Mapping[str, Any]], temperature: float) -> list[dict[str, Any]]:
    parts = [part for result in results for part in result.get("decodings", [result])]
    return [r for part in parts if part["temperature"] == temperature for r in part["records"]]


def _method(name: str) -> str | None:
    """None for what is no single dimension's plus: its opposite, mixes, both ways at once."""
    if re.fullmatch(r"told \S+", name):
        return PROMPTING
    guided = _GUIDED.fullmatch(name)
    return guided and guided["method"]


def at(points: Sequence[Point], wins: float) -> Point | None:
    """The method where it wins so often, on the straight line between the strengths around it."""
    known = [UNGUIDED, *points]
    for low, high in itertools.pairwise(known):
        if low.wins <= wins <= high.wins and low.wins < high.wins:
            share = (wins - low.wins) / (high.wins - low.wins)
            return Point(*(a + share * (b - a) for a, b in zip(low, high, strict=True)))
    return None


def compared(found: Mapping[tuple[str, str], Lines], wins: float) -> list[dict[str, Any]]:
    """A row a dimension, judge and method; None where no strength wins so often."""
    return [
        {
            "dimension": dimension,
            "judge": judge,
            "method": method,
            "at": (point := at(points, wins))
            and {k: round(v, 3) for k, v in point._asdict().items()},
            "most": round(max(p.wins for p in points), 3),
        }
        for (dimension, judge), lines in found.items()
        for method, points in lines.items()
        if method != PROMPTING
    ]


def table(rows: Sequence[Mapping[str, Any]], wins: float) -> list[str]:
    lines = [
        f"| dimension | judge | method | strength at {wins:.0%} | perplexity | repeated | most wins |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        point = row["at"]
        cells = (
            [f"{point['strength']:.2f}", f"{point['perplexity']:.2f}x", f"{point['repeated']:+.1%}"]
            if point
            else ["-"] * 3
        )
        names = [row["dimension"], row["judge"], row["method"]]
        lines.append(f"| {' | '.join([*names, *cells, format(row['most'], '.0%')])} |")
    return lines


def draw(found: Mapping[tuple[str, str], Lines], path: Path) -> None:
    """A panel a dimension and judge."""
    columns = min(len(found), 4)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), dpi=80, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel, ((dimension, judge), lines) in zip(panels, found.items(), strict=False):
        panel.set_title(f"{dimension}, by {judge}", fontsize=9)
        panel.set_xlabel("perplexity over unguided", fontsize=8)
        panel.set_ylabel("wins, %", fontsize=8)
        for method, points in sorted(lines.items()):
            known = points if method == PROMPTING else [UNGUIDED, *points]
            x, y = [p.perplexity for p in known], [100 * p.wins for p in known]
            panel.plot(x, y, "*" if method == PROMPTING else "o-", markersize=4, label=method)
        panel.legend(fontsize=7)
    for panel in list(panels):
        panel.set_axis_off()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--wins", type=float, default=0.75)
    parser.add_argument("--temperature", type=float, default=0.7)
    args = parser.parse_args()
    found = read([json.loads(path.read_text()) for path in args.results], args.temperature)
    rows = compared(found, args.wins)
    print("\n".join(table(rows, args.wins)))
    if args.picture:
        draw(found, args.picture)
    arguments.report(args.out, {"command": arguments.command(), "wins": args.wins, "rows": rows})


if __name__ == "__main__":
    main()
