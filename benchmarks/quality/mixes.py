"""Several dimensions at once: how much of each dimension's wins is left, against what each wins alone.

    python -m benchmarks.quality.mixes --prompts koala.jsonl --judge-prompts J --out mixes.json

A reward is linear in its weights by construction; the answers need not be. Measured are every two dimensions
at each two weights of --grid, both for more or one against the other; all at once, and all with one of them
turned. All in one batch, judged by judges that trained nothing; a win is one in the direction asked for.

alone    what a dimension wins at the same weight with no other beside it
added    log odds add up: of a dimension alone, and of what the other dimensions alone do to its judges
lost     wins alone less wins in the mix, prompt by prompt
broken   the wins in the mix are more than two standard errors from the sum (the error of the sum included):
         of 20 parts one by chance
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import arguments
from benchmarks.common.answer_experiment import AnswerExperiment
from benchmarks.common.independent_judges import (
    Verdict,
    Wins,
    mean_by_prompt,
    percent_with_interval,
    win_rate_and_interval,
    wins_in_direction,
)
from benchmarks.common.prompt_intervals import mean_and_interval
from pad_vllm.steering.comparison_conditions import Condition, unguided_condition

TOGETHER, OPPOSED, ALL = "together", "opposed", "all at once"

Mix = dict[str, float]
"""Dimension -> weight."""


def all_mixes(dimensions: Sequence[str], grid: Sequence[float]) -> Iterator[tuple[str, Mix]]:
    """(kind, mix) of every mix; grid: weights above 0."""
    for first, second in itertools.combinations(dimensions, 2):
        for a, b in itertools.product(grid, grid):
            yield TOGETHER, {first: a, second: b}
            yield OPPOSED, {first: a, second: -b}
            yield OPPOSED, {first: -a, second: b}
    if len(dimensions) > 2:
        all_for_more = dict.fromkeys(dimensions, max(grid))
        yield ALL, all_for_more
        for name in dimensions:
            yield ALL, {**all_for_more, name: -all_for_more[name]}


def single_dimensions(dimensions: Sequence[str], grid: Sequence[float]) -> list[Mix]:
    """Every dimension alone at each weight of the grid, in either sign."""
    return [{name: sign * a} for name in dimensions for a in grid for sign in (1.0, -1.0)]


def mix_name(mix: Mapping[str, float]) -> str:
    """Such as "+1 positive -1 brief"."""
    return " ".join(f"{weight:+g} {name}" for name, weight in mix.items())


def log_odds(wins: Wins) -> tuple[float, float]:
    """Log odds of a win, and their variance. Half a win and half a loss more keep both finite."""
    won, lost = sum(wins) + 0.5, len(wins) - sum(wins) + 0.5
    return math.log(won / lost), 1 / won + 1 / lost


def part_row(
    kind: str, mix: Mix, name: str, verdict: Verdict, alone: Mapping[str, Verdict]
) -> dict[str, Any]:
    """The result's row of one dimension of one mix.

    Args:
        kind: Of the mix.
        mix: Its weights.
        name: The dimension.
        verdict: On the mix's answers.
        alone: Verdicts on single dimensions, by `mix_name`.
    """
    sign = math.copysign(1.0, mix[name])
    wins = wins_in_direction(verdict.wins[name], sign)
    wins_alone = {
        other: wins_in_direction(alone[mix_name({other: mix[other]})].wins[name], sign)
        for other in mix
    }
    odds, variances = zip(*map(log_odds, wins_alone.values()), strict=True)
    odds_in_mix, variance = log_odds(wins)
    standard_errors = abs(odds_in_mix - sum(odds)) / (variance + sum(variances)) ** 0.5
    pairs = zip(wins_alone[name], wins, strict=True)
    return {
        "kind": kind,
        "mix": mix_name(mix),
        "part": name,
        "wins": win_rate_and_interval(wins),
        "alone": round(statistics.mean(wins_alone[name]), 3),
        "added": round(1 / (1 + math.exp(-sum(odds))), 3),
        "broken": standard_errors > 2,
        "lost": [round(before - after, 3) for before, after in pairs],
    }


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a kind of mix, over its parts."""
    kinds = []
    for kind in dict.fromkeys(r["kind"] for r in rows):
        of_kind = [r for r in rows if r["kind"] == kind]
        wins, alone, added = (
            statistics.mean(values)
            for values in zip(
                *((r["wins"][0], r["alone"], r["added"]) for r in of_kind), strict=True
            )
        )
        off_sum = statistics.mean(abs(r["wins"][0] - r["added"]) for r in of_kind)
        kinds.append(
            {
                "kind": kind,
                "parts": len(of_kind),
                "wins": round(wins, 3),
                "alone": round(alone, 3),
                "added": round(added, 3),
                "lost": mean_and_interval(mean_by_prompt([r["lost"] for r in of_kind])),
                "off": round(off_sum, 3),
                "broken": sum(r["broken"] for r in of_kind),
            }
        )
    return kinds


def table(kinds: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown: a line a kind of mix, then a line a part."""
    lines = [
        "| mixes | parts | wins | alone | added | lost, points | off the sum by | broken |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for r in kinds:
        rates = " | ".join(f"{100 * r[name]:.0f}" for name in ("wins", "alone", "added"))
        lost, off_sum = percent_with_interval(r["lost"]), f"{100 * r['off']:.0f}"
        cells = [r["kind"], str(r["parts"]), rates, lost, off_sum]
        lines.append(f"| {' | '.join(cells)} | {r['broken']} |")
    lines += [
        "",
        "| mix | part | wins | alone | added | |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    for r in rows:
        wins = percent_with_interval(r["wins"])
        rates = f"{100 * r['alone']:.0f} | {100 * r['added']:.0f}"
        broken = "broken" if r["broken"] else ""
        lines.append(f"| {r['mix']} | {r['part']} | {wins} | {rates} | {broken} |")
    return lines


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Wins over what the parts add up to; on the line nothing is lost."""
    figure = Figure(figsize=(5, 5), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="0.7", linewidth=1)
    for kind in dict.fromkeys(r["kind"] for r in rows):
        of_kind = [r for r in rows if r["kind"] == kind]
        x, y = [100 * r["added"] for r in of_kind], [100 * r["wins"][0] for r in of_kind]
        axes.plot(x, y, "o", markersize=4, label=kind)
    axes.set_xlabel("predicted: log odds of the parts added, wins in %")
    axes.set_ylabel("in the mix, wins in %")
    axes.legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__)
    arguments.add_judging_options(parser, tokens=48)
    parser.add_argument("--grid", type=float, nargs="+", default=[1.0], help="weights above 0")
    args = parser.parse_args()
    if min(args.grid) <= 0 or len(set(args.grid)) < len(args.grid):
        raise SystemExit(f"--grid {args.grid}: weights above 0 are accepted, each once")
    experiment = AnswerExperiment.from_arguments(args)
    dimensions, beta = experiment.dimensions, experiment.config.beta
    singles = single_dimensions(dimensions, args.grid)
    mixes = list(all_mixes(dimensions, args.grid))
    weights = [*singles, *(mix for _, mix in mixes)]
    conditions = [Condition(mix_name(w), w, beta) for w in weights]
    answers = experiment.draw([unguided_condition(), *conditions])
    _, *verdicts = experiment.judges.verdicts(dimensions, answers)
    alone = dict(zip(map(mix_name, singles), verdicts, strict=False))
    rows = [
        part_row(kind, mix, name, verdict, alone)
        for (kind, mix), verdict in zip(mixes, verdicts[len(singles) :], strict=True)
        for name in mix
    ]
    kinds = summarize(rows)
    result = {"kinds": kinds, "rows": rows, "table": table(kinds, rows)}
    arguments.print_and_write(args, {**experiment.result_entries(), **result}, partial(draw, rows))


if __name__ == "__main__":
    main()
