"""How much hangs on the settings? One at a time around the defaults: beta, candidates, temperature, min_p.

    python benchmarks/sensitivity.py --steering koala.jsonl --judge-prompts J --out sensitivity.json

Every dimension alone, judged by who trained nothing. A temperature and a number of candidates change the
base's own answers too: guided answers stand beside the unguided ones that were drawn alike. Beta and min_p
are a request's own, and all their values answer in one batch.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import arguments
from jury import Verdict, share, shown, text
from matplotlib.figure import Figure
from setting import Setting

from pad_vllm.steering.comparison_conditions import Condition, unguided_condition
from pad_vllm.steering.guided_answers import AnswerBatch, DecodingSettings

DEFAULT = "default"
BETA, TOP_K, TEMPERATURE, MIN_P = "beta", "top k", "temperature", "min p"

Found = dict[tuple[str, float], list[Verdict]]
"""(setting, its value) -> a verdict a dimension, in their order."""


def guided(names: Sequence[str], beta: float, label: str, **more: float) -> list[Condition]:
    return [
        Condition(f"{label} +{name}", {name: 1.0}, beta, request_arguments=more) for name in names
    ]


def of_requests(setting: Setting, values: Mapping[str, Sequence[float]]) -> Found:
    """The defaults, and the settings that a request may say."""
    names, beta = setting.dimensions, setting.config.beta
    asked = {(DEFAULT, 0.0): guided(names, beta, DEFAULT)}
    asked |= {(BETA, b): guided(names, b, f"{BETA} {b:g}") for b in values[BETA]}
    asked |= {(MIN_P, p): guided(names, beta, f"{MIN_P} {p:g}", pad_min_p=p) for p in values[MIN_P]}
    every = [unguided_condition(), *(one for some in asked.values() for one in some)]
    _, *verdicts = setting.jury.verdicts(names, setting.answers(every))
    parts = [verdicts[i : i + len(names)] for i in range(0, len(verdicts), len(names))]
    return dict(zip(asked, parts, strict=True))


def of_decodings(setting: Setting, values: Mapping[str, Sequence[float]]) -> Found:
    """The settings that draw the base's own answers too."""
    names, config = setting.dimensions, setting.config
    ways: dict[tuple[str, float], DecodingSettings] = {
        (TEMPERATURE, t): replace(setting.drawn, temperature=t) for t in values[TEMPERATURE]
    }
    ways |= {(TOP_K, k): replace(setting.drawn, top_k=int(k)) for k in values[TOP_K]}
    found = {}
    # One engine a number of candidates: conditions and decodings of a batch are crossed.
    for k in dict.fromkeys(one.top_k for one in ways.values()):
        some = {key: one for key, one in ways.items() if one.top_k == k}
        asked = [unguided_condition(), *guided(names, config.beta, f"{TOP_K} {k}", pad_top_k=k)]
        batch = AnswerBatch(
            setting.base, setting.folder, setting.prompts, asked, list(some.values())
        )
        for key, said in zip(some, setting.kept.answers(batch), strict=True):
            found[key] = setting.jury.verdicts(names, said)[1:]
    return found


def rows(found: Found, names: Sequence[str], defaults: Mapping[str, float]) -> list[dict[str, Any]]:
    """A line a value, the default among those of each setting."""
    made = []
    for name, default in defaults.items():
        points = {value: some for (of, value), some in found.items() if of == name}
        points[default] = found[DEFAULT, 0.0]
        for value, some in sorted(points.items()):
            wins = [one.wins[d] for one, d in zip(some, names, strict=True)]
            by_prompt = [statistics.mean(column) for column in zip(*wins, strict=True)]
            each = {d: round(statistics.mean(w), 3) for d, w in zip(names, wins, strict=True)}
            point = {"setting": name, "value": value, "default": value == default}
            made.append({**point, "wins": share(by_prompt), "of": each, **text(some)})
    return made


def table(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    lines = [
        f"| setting | value | wins | {' | '.join(names)} | perplexity | repeated |",
        f"| --- | ---: | --- | {' | '.join(['---:'] * len(names))} | ---: | ---: |",
    ]
    for r in found:
        value = f"{r['value']:g}{', default' if r['default'] else ''}"
        cells = " | ".join(f"{100 * r['of'][name]:.0f}" for name in names)
        cost = f"{r['perplexity']:.2f}x | {r['repeated_more']:+.1%}"
        lines.append(f"| {r['setting']} | {value} | {shown(r['wins'])} | {cells} | {cost} |")
    return lines


def draw(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Wins and what they cost, a column a setting."""
    names = list(dict.fromkeys(r["setting"] for r in found))
    figure = Figure(figsize=(3.2 * len(names), 5), dpi=90, layout="constrained")
    axes = figure.subplots(2, len(names), sharey="row", squeeze=False)
    for column, name in enumerate(names):
        some = [r for r in found if r["setting"] == name]
        x = [r["value"] for r in some]
        mean, low, high = ([100 * r["wins"][i] for r in some] for i in range(3))
        axes[0][column].fill_between(x, low, high, alpha=0.2)
        axes[0][column].plot(x, mean, "o-", markersize=4)
        axes[1][column].plot(x, [r["perplexity"] for r in some], "o-", markersize=4, color="C1")
        axes[1][column].set_xlabel(name)
        for row in axes:
            row[column].axvline(*(r["value"] for r in some if r["default"]), color="0.8", zorder=0)
    axes[0][0].set_ylabel("wins, %")
    axes[1][0].set_ylabel("perplexity over unguided")
    figure.savefig(path)


def main() -> None:
    parser = arguments.parser(__doc__)
    arguments.add_question(parser, tokens=48)
    parser.add_argument("--betas", type=float, nargs="*", default=[0.4, 1.6])
    parser.add_argument("--top-ks", type=int, nargs="*", default=[5, 50])
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.0, 1.0])
    parser.add_argument("--min-ps", type=float, nargs="*", default=[0.0, 0.4])
    args = parser.parse_args()
    setting = Setting.of(args)
    config = setting.config
    defaults = {BETA: config.beta, TOP_K: config.top_k, TEMPERATURE: args.temperature}
    defaults[MIN_P] = config.min_p
    given = {BETA: args.betas, TOP_K: args.top_ks}
    given |= {TEMPERATURE: args.temperatures, MIN_P: args.min_ps}
    values = {name: [v for v in some if v != defaults[name]] for name, some in given.items()}
    found = rows(
        of_requests(setting, values) | of_decodings(setting, values), setting.dimensions, defaults
    )
    result = {**setting.about(), "rows": found, "table": table(found, setting.dimensions)}
    arguments.tell(args, result, partial(draw, found))


if __name__ == "__main__":
    main()
