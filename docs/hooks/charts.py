"""Draws the curves of docs/tuning.md from benchmarks/results: SVG files in docs/pictures.

    python -m docs.hooks.charts

In: results. Out: one SVG a chart, whose text has the colour of the page around it, and which holds the points
that it shows as JSON, so that a test can compare them with the results.
"""

from __future__ import annotations

import io
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "docs" / "pictures"
_TEXT = "#123456"  # stands for the colour of the page's text until the SVG is written
_LINES = ("#00897b", "#ef6c00", "#5c6bc0", "#d81b60")
_STYLE = "<style>svg{color:#222}@media(prefers-color-scheme:dark){svg{color:#ddd}}</style>"

Points = list[tuple[float, float]]


class Chart(NamedTuple):
    """One pair of axes."""

    across: str
    up: str
    lines: dict[str, Points]
    """Label -> points, in order."""


def _result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _setting(setting: str) -> Chart:
    rows = [row for row in _result("sensitivity")["rows"] if row["setting"] == setting]
    return Chart(
        f"pad_{setting.replace(' ', '_')}",
        "against unguided answers",
        {
            "wins, share of prompts": [(row["value"], row["wins"][0]) for row in rows],
            "perplexity, times": [(row["value"], row["perplexity"]) for row in rows],
        },
    )


def _loops() -> Chart:
    rows = _result("loop_price")["rows"]
    return Chart(
        "pad_loop_price",
        "repeated 4-grams, 300 tokens",
        {
            name: [(r["price"], r["repeated"]) for r in rows if r["dimension"] == name]
            for name in ("simple", "friendly")
        },
    )


def _prefix() -> Chart:
    rows = [
        row
        for row in _result("learned_prefix_steering")["rows"]
        if row["method"] == "learned prefix"
    ]
    strengths = sorted({row["beta"] for row in rows})

    def mean(figure: Callable[[Any], float]) -> Points:
        of = {beta: [figure(row) for row in rows if row["beta"] == beta] for beta in strengths}
        return [(beta, round(statistics.fmean(figures), 3)) for beta, figures in of.items()]

    return Chart(
        "pad_beta of a learned prefix",
        "0: plain answers, 1: asked for",
        {
            "way": mean(lambda row: row["way"][0]),
            "perplexity, times": mean(lambda row: row["perplexity"]),
        },
    )


def _mixes() -> Chart:
    (table,) = [_result("mixes")["table"]]
    parts = [line.split("|") for line in table if line.startswith("| ") and line.count("|") == 7]
    rows = [(cell[5].strip(), cell[3].strip().split(" ")[0]) for cell in parts if cell[2].strip()]
    points = sorted((float(x), float(y)) for x, y in rows if x.isdigit() and y.isdigit())
    return Chart(
        "wins that the parts add up to, %", "wins in the mix, %", {"one part of a mix": points}
    )


CHARTS: dict[str, Callable[[], Chart]] = {
    "beta": lambda: _setting("beta"),
    "min-p": lambda: _setting("min p"),
    "candidates": lambda: _setting("top k"),
    "loop-price": _loops,
    "prefix-beta": _prefix,
    "mixes": _mixes,
}
"""Name of the file -> what it shows."""


def points_in(svg: str) -> dict[str, list[list[float]]]:
    """The points that a drawn chart holds."""
    return json.loads(re.search(r"<desc>(.*?)</desc>", svg)[1])  # type: ignore[index, no-any-return]


def drawn(name: str) -> str:
    """The SVG of a chart."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    chart = CHARTS[name]()
    colours = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    settings: dict[str, Any] = dict.fromkeys(colours, _TEXT)
    settings |= {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}
    with plt.rc_context(settings):
        figure, axes = plt.subplots(figsize=(4.4, 3.0))
        for colour, (label, points) in zip(_LINES, chart.lines.items(), strict=False):
            style = "o" if len(points) > 12 else "o-"
            axes.plot(*zip(*points, strict=True), style, color=colour, label=label, markersize=4)
        axes.set_xlabel(chart.across)
        axes.set_ylabel(chart.up)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, color=_TEXT)
        axes.legend(frameon=False, fontsize=9)
        figure.tight_layout()
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(_TEXT, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    title = f"<title>{chart.up} by {chart.across}</title>"
    head, _, rest = svg.partition(">")
    return f"{head}>{title}<desc>{json.dumps(chart.lines)}</desc>{_STYLE}{rest}"


def main() -> None:
    """Write all charts."""
    for name in CHARTS:
        (PICTURES / f"chart-{name}.svg").write_text(drawn(name), "utf-8")


if __name__ == "__main__":
    main()
