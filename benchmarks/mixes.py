"""Several dimensions at once: what is left of each part's wins, against what the parts do alone.

    python benchmarks/mixes.py --steering koala.jsonl --judge-prompts J --out mixes.json --picture mixes.png

A reward is linear in its weights by construction; what answers do is not. Every two dimensions at each two
weights of --grid, both for more or one against the other; all at once, and all with one of them turned. All
in one batch, judged by who trained nothing; a win is one in the direction asked for.

alone    what a part wins at the same weight with no other beside it
added    log odds add up: of a part alone, and of what the other parts alone do to its judges
lost     wins alone less wins in the mix, prompt by prompt
broken   what is added is more than two standard errors off, its own among them: of 20 parts one by chance
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import arguments
from jury import Verdict, Wins, share, shown, wished
from matplotlib.figure import Figure
from setting import Setting

from pad_vllm.steering import comparison_conditions
from pad_vllm.steering.comparison_conditions import Condition

TOGETHER, OPPOSED, ALL = "together", "opposed", "all at once"

Mix = dict[str, float]
"""Dimension -> weight."""


def mixes(dimensions: Sequence[str], grid: Sequence[float]) -> Iterator[tuple[str, Mix]]:
    """(kind, mix); grid: weights above 0."""
    for one, two in itertools.combinations(dimensions, 2):
        for a, b in itertools.product(grid, grid):
            yield TOGETHER, {one: a, two: b}
            yield OPPOSED, {one: a, two: -b}
            yield OPPOSED, {one: -a, two: b}
    if len(dimensions) > 2:
        most = dict.fromkeys(dimensions, max(grid))
        yield ALL, most
        for name in dimensions:
            yield ALL, {**most, name: -most[name]}


def parts(dimensions: Sequence[str], grid: Sequence[float]) -> list[Mix]:
    return [{name: sign * a} for name in dimensions for a in grid for sign in (1.0, -1.0)]


def said(mix: Mapping[str, float]) -> str:
    return " ".join(f"{weight:+g} {name}" for name, weight in mix.items())


def log_odds(wins: Wins) -> tuple[float, float]:
    """And their variance. Half a win and half a loss more keep both finite."""
    won, lost = sum(wins) + 0.5, len(wins) - sum(wins) + 0.5
    return math.log(won / lost), 1 / won + 1 / lost


def row(
    kind: str, mix: Mix, name: str, verdict: Verdict, alone: Mapping[str, Verdict]
) -> dict[str, Any]:
    """One part of one mix. alone: verdicts on the parts, by `said`."""
    sign = math.copysign(1.0, mix[name])
    won = wished(verdict.wins[name], sign)
    by_part = {other: wished(alone[said({other: mix[other]})].wins[name], sign) for other in mix}
    odds, variances = zip(*map(log_odds, by_part.values()), strict=True)
    in_mix, variance = log_odds(won)
    off = abs(in_mix - sum(odds)) / (variance + sum(variances)) ** 0.5
    pairs = zip(by_part[name], won, strict=True)
    return {
        "kind": kind,
        "mix": said(mix),
        "part": name,
        "wins": share(won),
        "alone": round(statistics.mean(by_part[name]), 3),
        "added": round(1 / (1 + math.exp(-sum(odds))), 3),
        "broken": off > 2,
        "lost": [round(before - after, 3) for before, after in pairs],
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line a kind."""
    found = []
    for kind in dict.fromkeys(r["kind"] for r in rows):
        some = [r for r in rows if r["kind"] == kind]
        # By prompt: the parts of a mix answer the same prompts, and are not apart.
        lost = [statistics.mean(column) for column in zip(*(r["lost"] for r in some), strict=True)]
        wins, alone, added = (
            statistics.mean(values)
            for values in zip(*((r["wins"][0], r["alone"], r["added"]) for r in some), strict=True)
        )
        off = statistics.mean(abs(r["wins"][0] - r["added"]) for r in some)
        found.append(
            {
                "kind": kind,
                "parts": len(some),
                "wins": round(wins, 3),
                "alone": round(alone, 3),
                "added": round(added, 3),
                "lost": share(lost),
                "off": round(off, 3),
                "broken": sum(r["broken"] for r in some),
            }
        )
    return found


def table(kinds: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| mixes | parts | wins | alone | added | lost, points | off the sum by | broken |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for r in kinds:
        rates = " | ".join(f"{100 * r[name]:.0f}" for name in ("wins", "alone", "added"))
        cells = [r["kind"], str(r["parts"]), rates, shown(r["lost"]), f"{100 * r['off']:.0f}"]
        lines.append(f"| {' | '.join(cells)} | {r['broken']} |")
    lines += [
        "",
        "| mix | part | wins | alone | added | |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    for r in rows:
        rates = f"{100 * r['alone']:.0f} | {100 * r['added']:.0f}"
        broken = "broken" if r["broken"] else ""
        lines.append(f"| {r['mix']} | {r['part']} | {shown(r['wins'])} | {rates} | {broken} |")
    return lines


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Wins over what the parts add up to; on the line nothing is lost."""
    figure = Figure(figsize=(5, 5), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="0.7", linewidth=1)
    for kind in dict.fromkeys(r["kind"] for r in rows):
        some = [r for r in rows if r["kind"] == kind]
        x, y = [100 * r["added"] for r in some], [100 * r["wins"][0] for r in some]
        axes.plot(x, y, "o", markersize=4, label=kind)
    axes.set_xlabel("predicted: log odds of the parts added, wins in %")
    axes.set_ylabel("in the mix, wins in %")
    axes.legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = arguments.parser(__doc__)
    arguments.add_question(parser, tokens=48)
    parser.add_argument("--grid", type=float, nargs="+", default=[1.0], help="weights above 0")
    args = parser.parse_args()
    if min(args.grid) <= 0 or len(set(args.grid)) < len(args.grid):
        raise SystemExit(f"--grid {args.grid}: weights above 0 are accepted, each once")
    setting = Setting.of(args)
    alone, mixed = parts(setting.dimensions, args.grid), list(mixes(setting.dimensions, args.grid))
    guided = [*alone, *(mix for _, mix in mixed)]
    asked = [Condition(said(mix), mix, setting.config.beta) for mix in guided]
    answered = setting.answers([comparison_conditions.unguided_condition(), *asked])
    _, *verdicts = setting.jury.verdicts(setting.dimensions, answered)
    by_part = dict(zip(map(said, alone), verdicts, strict=False))
    rows = [
        row(kind, mix, name, verdict, by_part)
        for (kind, mix), verdict in zip(mixed, verdicts[len(alone) :], strict=True)
        for name in mix
    ]
    kinds = summary(rows)
    result = {**setting.about(), "kinds": kinds, "rows": rows, "table": table(kinds, rows)}
    arguments.tell(args, result, partial(draw, rows))


if __name__ == "__main__":
    main()
