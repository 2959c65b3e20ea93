"""An adapter's dose: the strength of each dimension and learned prefix, and the min-p guard.

In: rows of dose_trial.py. Out: a Dose, which an adapter can be given. For each dimension that has an
instruction the strength with the largest way is taken whose answers cost no more perplexity, repetition and
derailed starts than those of the base that was told the instruction. The guard is one for all dimensions: the
value that lets them go furthest on average.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.evaluation.win_rates_and_fluency import value_and_interval_text

DoseRow = dict[str, Any]
"""One point of the grid, plain JSON: "dimension", "kind", "beta", "min_p", "way" with its interval,
"perplexity" relative to the unguided answers', "repeated" and "derailed" shares, and whether it "fits".
"""

HEADS, PREFIX, TOLD = "heads", "prefix", "told"
"""Kinds of rows; TOLD is asking in the prompt, whose costs are the limits."""

_MORE_REPEATED = 0.01
"""By which the share of repeated 4-grams may exceed that of told and of plain answers."""


@dataclass(frozen=True)
class Dose:
    """What was chosen; a dimension or prefix that no strength suits has the grid's weakest one."""

    min_p: float
    betas: Mapping[str, float]
    prefix_betas: Mapping[str, float]

    def applied_to(self, adapter: Adapter) -> Adapter:
        """The adapter with this dose: heads are scaled so that its default beta is each one's strength."""
        config = adapter.config
        scales = adapter.head_B.new_tensor(
            [self.betas.get(name, config.beta) / config.beta for name in config.dimensions]
        )
        dosed = replace(
            adapter,
            config=replace(config, min_p=self.min_p),
            head_B=adapter.head_B * scales[:, None, None],
            head_C=None if adapter.head_C is None else adapter.head_C * scales[:, None],
        )
        if config.prefixes is None:
            return dosed
        betas = {**config.prefixes.betas, **self.prefix_betas}
        return dosed.with_prefixes(config.prefixes.fork_layer, adapter.prefixes, betas)


def fits(row: DoseRow, told: DoseRow, prompts: int) -> bool:
    """Whether answers cost no more than told ones; one more derailed start is chance."""
    most_repeated = max(told["repeated"], told["plain_repeated"]) + _MORE_REPEATED
    return bool(
        row["perplexity"] <= told["perplexity"]
        and row["repeated"] <= most_repeated
        and round((row["derailed"] - told["derailed"]) * prompts) <= 1  # shares are rounded
    )


def choose_dose(rows: Sequence[DoseRow]) -> Dose:
    """The strengths that go furthest within the limits, and the guard under which heads do."""
    heads = [row for row in rows if row["kind"] == HEADS]
    by_guard = {
        min_p: _furthest(row for row in heads if row["min_p"] == min_p)
        for min_p in dict.fromkeys(row["min_p"] for row in heads)
    }
    min_p, best = max(by_guard.items(), key=lambda item: sum(_way(row) for row in item[1].values()))
    prefixes = _furthest(row for row in rows if row["kind"] == PREFIX)
    return Dose(
        min_p,
        {name: row["beta"] for name, row in best.items()},
        {name: row["beta"] for name, row in prefixes.items()},
    )


def _furthest(rows: Iterable[DoseRow]) -> dict[str, DoseRow]:
    """Dimension -> of the rows that fit the one with the largest way, otherwise the weakest."""
    by_name: dict[str, list[DoseRow]] = {}
    for row in rows:
        by_name.setdefault(row["dimension"], []).append(row)
    return {
        name: max(
            (row for row in group if row["fits"]),
            key=_way,
            default=min(group, key=lambda row: row["beta"]),
        )
        for name, group in by_name.items()
    }


def _way(row: DoseRow) -> float:
    return float(row["way"][0]) if row["fits"] else 0.0


def dose_table(rows: Sequence[DoseRow], dose: Dose) -> list[str]:
    """Lines of a Markdown table, a row a point; the chosen ones are marked."""
    lines = [
        "| dimension | by | beta | min_p | way | perplexity | repeated | derailed | within told's | chosen |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | --- | --- |",
    ]
    chosen = {(HEADS, name, beta, dose.min_p) for name, beta in dose.betas.items()}
    chosen |= {(PREFIX, name, beta, 0.0) for name, beta in dose.prefix_betas.items()}
    for row in rows:
        told = row["kind"] == TOLD
        cells = [row["dimension"], row["kind"]]
        cells += ["", ""] if told else [f"{row['beta']:g}", f"{row['min_p']:g}"]
        cells += [value_and_interval_text(row["way"]), f"{row['perplexity']:.2f}x"]
        cells += [f"{row['repeated']:.1%}", f"{row['derailed']:.1%}"]
        is_chosen = (row["kind"], row["dimension"], row["beta"], row["min_p"]) in chosen
        cells += [
            "" if told else "yes" if row["fits"] else "no",
            "yes" if is_chosen and not told else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
