"""How much hangs on the settings? One at a time around the defaults: beta, candidates, temperature, min_p.

    python -m benchmarks.quality.sensitivity --prompts koala.jsonl --judge-prompts J --out sensitivity.json

Every dimension alone, judged by judges that trained nothing. A temperature and a number of candidates change
the base's own answers too: guided answers are compared with unguided ones that were drawn alike. Beta and
min_p are a request's own, and all their values answer in one batch.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import arguments
from benchmarks.common.answer_experiment import AnswerExperiment
from benchmarks.common.independent_judges import (
    Verdict,
    mean_by_prompt,
    percent_with_interval,
    text_costs,
    win_rate_and_interval,
)
from pad_vllm.steering.comparison_conditions import Condition, unguided_condition
from pad_vllm.steering.guided_answers import AnswerBatch, DecodingSettings

DEFAULT = "default"
BETA, TOP_K, TEMPERATURE, MIN_P = "beta", "top k", "temperature", "min p"

SettingVerdicts = dict[tuple[str, float], list[Verdict]]
"""(setting, its value) -> a verdict a dimension, in their order."""


def single_conditions(
    names: Sequence[str], beta: float, label: str, **request_arguments: float
) -> list[Condition]:
    """Each dimension alone.

    Args:
        names: The dimensions.
        beta: Strength of guidance.
        label: First word of the conditions' names.
        request_arguments: Other arguments of the requests.
    """
    return [
        Condition(f"{label} +{name}", {name: 1.0}, beta, request_arguments=request_arguments)
        for name in names
    ]


def judge_request_settings(
    experiment: AnswerExperiment, values: Mapping[str, Sequence[float]]
) -> SettingVerdicts:
    """The defaults, and the values of settings that a request may carry."""
    names, beta = experiment.dimensions, experiment.config.beta
    conditions = {(DEFAULT, 0.0): single_conditions(names, beta, DEFAULT)}
    conditions |= {(BETA, b): single_conditions(names, b, f"{BETA} {b:g}") for b in values[BETA]}
    conditions |= {
        (MIN_P, p): single_conditions(names, beta, f"{MIN_P} {p:g}", pad_min_p=p)
        for p in values[MIN_P]
    }
    in_one_batch = [unguided_condition(), *itertools.chain(*conditions.values())]
    _, *verdicts = experiment.judges.verdicts(names, experiment.draw(in_one_batch))
    by_value = [verdicts[i : i + len(names)] for i in range(0, len(verdicts), len(names))]
    return dict(zip(conditions, by_value, strict=True))


def judge_decoding_settings(
    experiment: AnswerExperiment, values: Mapping[str, Sequence[float]]
) -> SettingVerdicts:
    """The values of settings that change how the base's own answers are drawn too."""
    names, config = experiment.dimensions, experiment.config
    decodings: dict[tuple[str, float], DecodingSettings] = {
        (TEMPERATURE, t): replace(experiment.decoding, temperature=t) for t in values[TEMPERATURE]
    }
    decodings |= {(TOP_K, k): replace(experiment.decoding, top_k=int(k)) for k in values[TOP_K]}
    verdicts = {}
    # One engine a number of candidates: conditions and decodings of a batch are crossed.
    for k in dict.fromkeys(decoding.top_k for decoding in decodings.values()):
        with_k = {key: d for key, d in decodings.items() if d.top_k == k}
        guided = single_conditions(names, config.beta, f"{TOP_K} {k}", pad_top_k=k)
        batch = AnswerBatch(
            experiment.base,
            experiment.adapter_folder,
            experiment.prompts,
            [unguided_condition(), *guided],
            list(with_k.values()),
        )
        for key, answers in zip(with_k, experiment.cache.draw(batch), strict=True):
            verdicts[key] = experiment.judges.verdicts(names, answers)[1:]
    return verdicts


def result_rows(
    verdicts: SettingVerdicts, names: Sequence[str], defaults: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A row a value, the default among those of each setting.

    Args:
        verdicts: By setting and value.
        names: The dimensions, in the order of the verdicts.
        defaults: Setting -> its default.
    """
    rows = []
    for setting, default in defaults.items():
        by_value = {value: v for (of, value), v in verdicts.items() if of == setting}
        by_value[default] = verdicts[DEFAULT, 0.0]
        for value, of_dimensions in sorted(by_value.items()):
            wins = [verdict.wins[name] for verdict, name in zip(of_dimensions, names, strict=True)]
            row = {"setting": setting, "value": value, "default": value == default}
            row["wins"] = win_rate_and_interval(mean_by_prompt(wins))
            row["of"] = {d: round(statistics.mean(w), 3) for d, w in zip(names, wins, strict=True)}
            rows.append({**row, **text_costs(of_dimensions)})
    return rows


def table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Markdown, a line a value; names: of the dimensions."""
    lines = [
        f"| setting | value | wins | {' | '.join(names)} | perplexity | repeated |",
        f"| --- | ---: | --- | {' | '.join(['---:'] * len(names))} | ---: | ---: |",
    ]
    for r in rows:
        value = f"{r['value']:g}{', default' if r['default'] else ''}"
        wins = percent_with_interval(r["wins"])
        cells = " | ".join(f"{100 * r['of'][name]:.0f}" for name in names)
        cost = f"{r['perplexity']:.2f}x | {r['repeated_more']:+.1%}"
        lines.append(f"| {r['setting']} | {value} | {wins} | {cells} | {cost} |")
    return lines


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Wins and perplexity, a column a setting."""
    settings = list(dict.fromkeys(r["setting"] for r in rows))
    figure = Figure(figsize=(3.2 * len(settings), 5), dpi=90, layout="constrained")
    axes = figure.subplots(2, len(settings), sharey="row", squeeze=False)
    for column, setting in enumerate(settings):
        of_setting = [r for r in rows if r["setting"] == setting]
        (default,) = (r["value"] for r in of_setting if r["default"])
        x = [r["value"] for r in of_setting]
        mean, low, high = ([100 * r["wins"][i] for r in of_setting] for i in range(3))
        upper, lower = axes[0][column], axes[1][column]
        upper.fill_between(x, low, high, alpha=0.2)
        upper.plot(x, mean, "o-", markersize=4)
        lower.plot(x, [r["perplexity"] for r in of_setting], "o-", markersize=4, color="C1")
        lower.set_xlabel(setting)
        for panel in (upper, lower):
            panel.axvline(default, color="0.8", zorder=0)
    axes[0][0].set_ylabel("wins, %")
    axes[1][0].set_ylabel("perplexity over unguided")
    figure.savefig(path)


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__)
    arguments.add_judging_options(parser, tokens=48)
    parser.add_argument("--betas", type=float, nargs="*", default=[0.4, 1.6])
    parser.add_argument("--top-ks", type=int, nargs="*", default=[5, 50])
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.0, 1.0])
    parser.add_argument("--min-ps", type=float, nargs="*", default=[0.0, 0.4])
    args = parser.parse_args()
    experiment = AnswerExperiment.from_arguments(args)
    config = experiment.config
    defaults = {
        BETA: config.beta,
        TOP_K: config.top_k,
        TEMPERATURE: args.temperature,
        MIN_P: config.min_p,
    }
    requested = {
        BETA: args.betas,
        TOP_K: args.top_ks,
        TEMPERATURE: args.temperatures,
        MIN_P: args.min_ps,
    }
    values = {
        setting: [v for v in requested[setting] if v != defaults[setting]] for setting in requested
    }
    verdicts = judge_request_settings(experiment, values)
    verdicts |= judge_decoding_settings(experiment, values)
    rows = result_rows(verdicts, experiment.dimensions, defaults)
    result = {"rows": rows, "table": table(rows, experiment.dimensions)}
    arguments.print_and_write(args, {**experiment.result_entries(), **result}, partial(draw, rows))


if __name__ == "__main__":
    main()
