"""Tables that set guidance beside asking in the prompt, of the results in benchmarks/results.

In: results of `pad-vllm steer`. Out: Markdown. A mean is over the judges that taught the adapter nothing; the
base told the wish in its prompt, which taught some, is never among them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


class Comparison(NamedTuple):
    """One result, and what its table calls it."""

    result: str
    """Name of the file, without its ending."""

    label: str
    """Base, prompts and length of the answers."""

    guided: str
    """How the name of a guided condition begins."""


COMPARISONS = (
    Comparison("steering_smollm2", "SmolLM2-135M, heads only, 40 prompts, 64 tokens", "PAD +"),
    Comparison("steering_trunk_smollm2", "SmolLM2-135M, a trunk, 24 prompts, 64 tokens", "PAD +"),
    Comparison("steering_trunk_qwen05", "Qwen2.5-Coder-0.5B, a trunk, 40 prompts", "PAD +"),
    Comparison("steering_trunk_koala_qwen05", "The same, 25 Koala prompts, 64 tokens", "PAD +"),
    Comparison(
        "steering_trunk_qwen15", "Qwen2.5-Coder-1.5B, a trunk, 16 prompts, 48 tokens", "PAD +"
    ),
    Comparison("steering_qwen05", "Qwen2.5-Coder-0.5B, heads only, 24 prompts", "PAD +"),
    Comparison("steering_qwen05", "Qwen2.5-Coder-0.5B, learned prefixes, the same", "prefix +"),
)


class Way(NamedTuple):
    """What one way to answer did, or the mean of several dimensions."""

    wins: float
    """Share of prompts in which it beats the unguided answer, mean of judges."""

    perplexity: float
    """Times that of the unguided answers."""

    repeated: float
    """Share of repeated 4-grams less the unguided answers'."""


def comparison(one: Comparison) -> dict[str, tuple[Way, Way]]:
    """Dimension -> (guided, asked in the prompt)."""
    found = json.loads((RESULTS / f"{one.result}.json").read_text())
    records = {record["name"]: record for record in found["decodings"][0]["records"]}
    names = [name.removeprefix("told ") for name in records if name.startswith("told ")]
    dimensions = [name for name in names if f"{one.guided}{name}" in records]
    taught = {name: {"teacher", *found["taught"].get(name, ())} for name in dimensions}
    return {
        name: (
            _way(records[f"{one.guided}{name}"], name, taught[name]),
            _way(records[f"told {name}"], name, taught[name]),
        )
        for name in dimensions
    }


def _way(record: dict[str, Any], dimension: str, taught: set[str]) -> Way:
    judges = {
        judge: wins[0] for judge, wins in record["wins"][dimension].items() if judge not in taught
    }
    return Way(statistics.fmean(judges.values()), record["perplexity"], record["repeated_more"])


def mean_way(ways: list[Way]) -> Way:
    """The mean of each figure."""
    return Way(*(statistics.fmean(figures) for figures in zip(*ways, strict=True)))


def means_table() -> str:
    """A row for each result: the mean over its dimensions."""
    rows = [_row(one.label, *map(mean_way, _columns(comparison(one)))) for one in COMPARISONS]
    return "\n".join([*_head("base and prompts"), *rows])


def dimensions_table(result: str, guided: str) -> str:
    """A row for each dimension of one result."""
    (one,) = [c for c in COMPARISONS if (c.result, c.guided) == (result, guided)]
    return "\n".join([*_head("dimension"), *(_row(n, *w) for n, w in comparison(one).items())])


def setting_table(setting: str) -> str:
    """A row for each value of one setting around the defaults of the adapter for SmolLM2."""
    found = json.loads((RESULTS / "sensitivity.json").read_text())["rows"]
    rows = [row for row in found if row["setting"] == setting]
    dimensions = list(rows[0]["of"])
    names = [setting, "wins", *dimensions, "perplexity"]
    lines = [f"| {' | '.join(names)} |", "| ---: | --- |" + " ---: |" * (len(names) - 2)]
    for row in rows:
        mean, low, high = (f"{100 * share:.0f}" for share in row["wins"])
        value = f"{row['value']:g}{', default' if row['default'] else ''}"
        parts = [f"{100 * row['of'][name]:.0f}" for name in dimensions]
        cells = [value, f"{mean} ({low} to {high})", *parts, f"{row['perplexity']:.2f}x"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _columns(found: dict[str, tuple[Way, Way]]) -> Iterator[list[Way]]:
    for column in zip(*found.values(), strict=True):
        yield list(column)


def _head(first: str) -> list[str]:
    return [
        f"| {first} | guided: wins | perplexity | repeats | asked: wins | perplexity | repeats |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]


def _row(label: str, guided: Way, asked: Way) -> str:
    best = max(round(guided.wins, 2), round(asked.wins, 2))
    cells = []
    for way in (guided, asked):
        wins = f"{way.wins:.0%}"
        wins = f"**{wins}**" if round(way.wins, 2) == best else wins
        cells += [wins, f"{way.perplexity:.2f}x", f"{round(100 * way.repeated):+d}"]
    return f"| {label} | {' | '.join(cells)} |"
