"""What do wins cost the text? Wins against perplexity, a line a method, from results that exist.

    python -m benchmarks.quality.wins_vs_perplexity RESULT.json... --out pareto.json --picture pareto.png

RESULT: what `pad-vllm steer ... --beta B --beta B --beside NAME=ADAPTER` and `peer_methods.py` wrote, several
strengths a method. An instruction in the prompt is a point. Strengths have no common unit, so methods are
also compared at equal wins: perplexity and repetition at --wins, between the two strengths that lie around
it.
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

from matplotlib.figure import Figure

from benchmarks.common import arguments

PROMPTING = "prompting"
_GUIDED_NAME = re.compile(r"(?P<method>\S+) \+(?P<dimension>[^+ ]+)")


class StrengthPoint(NamedTuple):
    """A method at one strength."""

    strength: float
    wins: float
    perplexity: float  # over the unguided answers'
    repeated: float  # share of repeated 4-grams, less the unguided answers'


UNGUIDED = StrengthPoint(0.0, 0.5, 1.0, 0.0)
"""Where every method begins."""

MethodLines = dict[str, list[StrengthPoint]]
"""Method -> its points, weakest first."""

LinesByJudge = Mapping[tuple[str, str], MethodLines]
"""(dimension, judge) -> lines."""


def read_lines(
    results: Sequence[Mapping[str, Any]], temperature: float
) -> dict[tuple[str, str], MethodLines]:
    """The lines of all results at one temperature, by dimension and judge."""
    by_judge: dict[tuple[str, str], MethodLines] = defaultdict(lambda: defaultdict(list))
    for record in _records(results, temperature):
        method = _method(record["name"])
        for dimension, judges in record["wins"].items() if method else ():
            for judge, (wins, *_) in judges.items():
                point = StrengthPoint(
                    record["beta"], wins, record["perplexity"], record["repeated_more"]
                )
                by_judge[dimension, judge][method].append(point)
    return {
        key: {method: sorted(points) for method, points in lines.items()}
        for key, lines in by_judge.items()
    }


def _records(results: Sequence[Mapping[str, Any]], temperature: float) -> list[dict[str, Any]]:
    decodings = [part for result in results for part in result.get("decodings", [result])]
    return [r for part in decodings if part["temperature"] == temperature for r in part["records"]]


def _method(name: str) -> str | None:
    """Of a condition's name; None unless it is one dimension for more: no opposite, mix, or guidance on top
    of an instruction.
    """
    if re.fullmatch(r"told \S+", name):
        return PROMPTING
    guided = _GUIDED_NAME.fullmatch(name)
    return guided and guided["method"]


def point_at_wins(points: Sequence[StrengthPoint], wins: float) -> StrengthPoint | None:
    """The method where it wins so often, on the straight line between the strengths around it; None where
    no strength wins so often.
    """
    for low, high in itertools.pairwise([UNGUIDED, *points]):
        if low.wins <= wins <= high.wins and low.wins < high.wins:
            share = (wins - low.wins) / (high.wins - low.wins)
            return StrengthPoint(*(a + share * (b - a) for a, b in zip(low, high, strict=True)))
    return None


def compare_at_wins(by_judge: LinesByJudge, wins: float) -> list[dict[str, Any]]:
    """A row a dimension, judge and method; "at" is None where no strength wins so often."""
    rows = []
    for (dimension, judge), lines in by_judge.items():
        for method, points in lines.items():
            if method == PROMPTING:
                continue
            point = point_at_wins(points, wins)
            rows.append(
                {
                    "dimension": dimension,
                    "judge": judge,
                    "method": method,
                    "at": point and {k: round(v, 3) for k, v in point._asdict().items()},
                    "most": round(max(p.wins for p in points), 3),
                }
            )
    return rows


def table(rows: Sequence[Mapping[str, Any]], wins: float) -> list[str]:
    """Markdown, a line a dimension, judge and method; a dash where no strength wins so often."""
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


def draw(by_judge: LinesByJudge, path: Path) -> None:
    """A panel a dimension and judge."""
    columns = min(len(by_judge), 4)
    rows = -(-len(by_judge) // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), dpi=80, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel, ((dimension, judge), lines) in zip(panels, by_judge.items(), strict=False):
        panel.set_title(f"{dimension}, by {judge}", fontsize=9)
        panel.set_xlabel("perplexity over unguided", fontsize=8)
        panel.set_ylabel("wins, %", fontsize=8)
        for method, points in sorted(lines.items()):
            line = points if method == PROMPTING else [UNGUIDED, *points]
            x, y = [p.perplexity for p in line], [100 * p.wins for p in line]
            panel.plot(x, y, "*" if method == PROMPTING else "o-", markersize=4, label=method)
        panel.legend(fontsize=7)
    for unused in list(panels):
        unused.set_axis_off()
    figure.savefig(path)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(__doc__, base=None, adapter=None)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--wins", type=float, default=0.75)
    parser.add_argument("--temperature", type=float, default=0.7)
    return parser.parse_args()


def main() -> None:
    """See the module's docstring."""
    args = parse()
    results = [json.loads(path.read_text()) for path in args.results]
    by_judge = read_lines(results, args.temperature)
    rows = compare_at_wins(by_judge, args.wins)
    print("\n".join(table(rows, args.wins)))
    if args.picture:
        draw(by_judge, args.picture)
    result = {"command": arguments.command_line(), "wins": args.wins, "rows": rows}
    arguments.write_result(args.out, result)


if __name__ == "__main__":
    main()
