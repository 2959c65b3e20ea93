"""Which part of a reward does the work? The same adapter with parts of it replaced, at the same spread.

    python -m benchmarks.quality.ablation --prompts koala.jsonl --judge-prompts J --out ablation.json

no reward   the base's candidates as the base ranks them: how far judges of two draws agree by chance
as trained  each dimension alone
random      heads of normally distributed numbers
shuffled    the next dimension's heads, judged as this one
constants   a bias over the vocabulary, without the state
state       heads without their constants

and how to hand out a preference of several strengths (1, 0.5, 0.25), all weights summing to one:

uniform     every dimension of the preference alike
normalised  in proportion to the strengths
maximum     all of it on the strongest

The variants stand side by side as dimensions of one adapter, and answer in one batch. The weights make each
variant's rewards as large as those of the dimension it stands for: the same spread over the base's
candidates, read from plain answers.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.common import arguments
from benchmarks.common.answer_experiment import AnswerExperiment
from benchmarks.common.base_reader import open_reader
from benchmarks.common.independent_judges import (
    Verdict,
    Wins,
    mean_by_prompt,
    percent_with_interval,
    text_costs,
    win_rate_and_interval,
)
from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import save_adapter
from pad_vllm.adapter.combine_adapters import AdapterPart, merge_adapters
from pad_vllm.choices.reward_space import RewardSpace
from pad_vllm.steering.comparison_conditions import Condition, unguided_condition

NO_REWARD, AS_TRAINED, SHUFFLED = "no reward", "as trained", "shuffled"
RANDOM, CONSTANTS, STATE = "random", "constants", "state"
STRENGTHS = (1.0, 0.5, 0.25)
UNIFORM, NORMALISED, MAXIMUM = "uniform", "normalised", "maximum"

Weights = dict[str, float]
"""Dimension -> weight."""

Ranking = tuple[str, ...]
"""The dimensions of a preference, strongest first."""


def make_variants(adapter: Adapter, seed: int) -> dict[str, Adapter]:
    """Variant -> the adapter with all dimensions changed so; only an adapter with constants has those two."""
    source = torch.Generator().manual_seed(seed)
    A, B, C, G = adapter.heads
    no_constants = torch.zeros_like(C) if C is not None else None

    def normal_like(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=source)

    no_gates = torch.zeros_like(G) if G is not None else None
    heads = {RANDOM: (normal_like(A), normal_like(B), no_constants, no_gates)}
    if C is not None:
        heads |= {
            CONSTANTS: (torch.zeros_like(A), torch.zeros_like(B), C, no_gates),
            STATE: (A, B, no_constants, G),
        }
    return {
        variant: _rename_dimensions(variant, Adapter(adapter.config, adapter.lora, *tensors))
        for variant, tensors in heads.items()
    }


def dimension_name(variant: str, dimension: str) -> str:
    """Name of a variant's dimension in the adapter that holds all variants."""
    return dimension if variant == AS_TRAINED else f"{variant}_{dimension}"


def _rename_dimensions(variant: str, adapter: Adapter) -> Adapter:
    names = tuple(dimension_name(variant, name) for name in adapter.config.dimensions)
    return dataclasses.replace(
        adapter, config=dataclasses.replace(adapter.config, dimensions=names)
    )


def reward_spreads(experiment: AnswerExperiment, adapter: Adapter) -> dict[str, float]:
    """Dimension -> standard deviation of its rewards over the base's candidates, in logits."""
    space = RewardSpace(open_reader(experiment.base, adapter))
    space.read(experiment.judge_prompts, experiment.unguided_judge_answers, {})
    variances = space.gram.diagonal() / space.tokens
    return dict(zip(adapter.config.dimensions, variances.sqrt().tolist(), strict=True))


def variant_weights(
    names: Sequence[str], spreads: Mapping[str, float]
) -> dict[tuple[str, str], Weights]:
    """(variant, dimension that it stands for) -> weights that give both the same spread."""
    weights = {}
    for index, name in enumerate(names):
        stand_ins = {v: dimension_name(v, name) for v in (AS_TRAINED, RANDOM, CONSTANTS, STATE)}
        if len(names) > 1:
            stand_ins[SHUFFLED] = names[(index + 1) % len(names)]
        for variant, other in stand_ins.items():
            if spreads.get(other):
                weights[variant, name] = {other: float(f"{spreads[name] / spreads[other]:.4g}")}
    return weights


def strategy_weights(names: Sequence[str], size: int) -> dict[tuple[str, Ranking], Weights]:
    """(strategy, preference) -> weights, for preferences of `size` dimensions; every dimension is the
    strongest once.
    """
    weights = {}
    for index in range(len(names)):
        ranking = tuple(names[(index + step) % len(names)] for step in range(size))
        total = sum(STRENGTHS[:size])
        ways = {
            UNIFORM: dict.fromkeys(ranking, 1 / size),
            NORMALISED: {name: w / total for name, w in zip(ranking, STRENGTHS, strict=False)},
            MAXIMUM: {ranking[0]: 1.0},
        }
        weights |= {(way, ranking): w for way, w in ways.items()}
    return weights


def mean_over_dimensions(
    wins: Sequence[Wins], weights: Sequence[float] | None = None
) -> list[float]:
    """Mean over dimensions with its interval; averaged by prompt first, since answers to one prompt are not
    independent.
    """
    weights = weights or [1.0] * len(wins)
    return win_rate_and_interval(
        [_weighted_mean(column, weights) for column in zip(*wins, strict=True)]
    )


def _weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def variant_row(name: str, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """The result's row of a variant; verdicts: by the dimension that is judged."""
    wins = {dimension: verdict.wins[dimension] for dimension, verdict in verdicts.items()}
    return {
        "variant": name,
        "wins": mean_over_dimensions(list(wins.values())),
        "of": {dimension: round(statistics.mean(w), 3) for dimension, w in wins.items()},
        **text_costs(list(verdicts.values())),
    }


def strategy_row(way: str, size: int, verdicts: Mapping[Ranking, Verdict]) -> dict[str, Any]:
    """The result's row of a strategy.

    Args:
        way: The strategy.
        size: Dimensions of a preference.
        verdicts: By preference.
    """
    wins_by_rank = [
        mean_by_prompt([v.wins[ranking[rank]] for ranking, v in verdicts.items()])
        for rank in range(size)
    ]
    return {
        "variant": f"{way} of {size}",
        "wins": mean_over_dimensions(wins_by_rank, STRENGTHS[:size]),
        "ranks": [round(statistics.mean(wins), 3) for wins in wins_by_rank],
        **text_costs(list(verdicts.values())),
    }


def table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Markdown, a line a variant; names: of the columns for dimensions or ranks."""
    lines = [
        f"| variant | wins | {' | '.join(names)} | perplexity | repeated |",
        f"| --- | --- | {' | '.join(['---:'] * len(names))} | ---: | ---: |",
    ]
    for r in rows:
        share_of = r["of"] if "of" in r else dict(zip(names, r["ranks"], strict=False))
        cells = [f"{100 * share_of[name]:.0f}" if name in share_of else "" for name in names]
        cost = f"{r['perplexity']:.2f}x | {r['repeated_more']:+.1%}"
        wins = percent_with_interval(r["wins"])
        lines.append(f"| {r['variant']} | {wins} | {' | '.join(cells)} | {cost} |")
    return lines


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Wins with their intervals, a line a variant."""
    figure = Figure(figsize=(6, 0.4 * len(rows) + 1), dpi=100, layout="constrained")
    axes = figure.subplots()
    for y, r in enumerate(rows):
        mean, low, high = (100 * x for x in r["wins"])
        axes.errorbar(mean, y, xerr=[[mean - low], [high - mean]], fmt="o", color="C0", capsize=3)
    axes.axvline(50, color="0.7", linewidth=1)
    axes.set_yticks(range(len(rows)), [r["variant"] for r in rows])
    axes.invert_yaxis()
    axes.set_xlabel("wins over the unguided answers, %, mean over dimensions")
    figure.savefig(path)


def judge_guided_answers(
    experiment: AnswerExperiment, adapter: Adapter, weights: Mapping[Any, Weights]
) -> dict[Any, Verdict]:
    """Draw and judge the answers of an adapter.

    Args:
        experiment: Its base, prompts and judges.
        adapter: The adapter that guides.
        weights: Of each condition.

    Returns:
        Verdicts by the keys of `weights`.
    """
    beta = experiment.config.beta
    conditions = [Condition(str(key), w, beta) for key, w in weights.items()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "variants"
        save_adapter(adapter, path, "# Variants, side by side\n")
        answers = experiment.draw([unguided_condition(), *conditions], str(path))
    _, *verdicts = experiment.judges.verdicts(experiment.dimensions, answers)
    return dict(zip(weights, verdicts, strict=True))


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__)
    arguments.add_judging_options(parser, tokens=48)
    parser.add_argument("--seed", type=int, default=0, help="of the random heads")
    args = parser.parse_args()
    experiment = AnswerExperiment.from_arguments(args)
    experiment.require_heads_only()
    names, trained = experiment.dimensions, experiment.adapter
    variants = make_variants(trained, args.seed)
    adapter = merge_adapters([AdapterPart(a, {}) for a in (trained, *variants.values())])
    spreads = reward_spreads(experiment, adapter)
    singles = variant_weights(names, spreads)
    sizes = [size for size in (2, 3) if size <= len(names)]
    strategies = {k: w for size in sizes for k, w in strategy_weights(names, size).items()}
    # All on the strongest is that dimension alone, as trained: it is not drawn again.
    to_draw = {key: w for key, w in strategies.items() if key[0] != MAXIMUM}
    weights = {NO_REWARD: {names[0]: 0.0}, **singles, **to_draw}
    verdicts = judge_guided_answers(experiment, adapter, weights)
    verdicts |= {
        (way, ranking): verdicts[AS_TRAINED, ranking[0]]
        for way, ranking in strategies
        if way == MAXIMUM
    }
    rows = [variant_row(NO_REWARD, dict.fromkeys(names, verdicts[NO_REWARD]))]
    for variant in dict.fromkeys(variant for variant, _ in singles):
        by_dimension = {d: verdicts[v, d] for v, d in singles if v == variant}
        rows += [variant_row(variant, by_dimension)]
    strategy_rows = []
    for size in sizes:
        for way in (UNIFORM, NORMALISED, MAXIMUM):
            rankings = [r for w, r in strategies if w == way and len(r) == size]
            strategy_rows += [strategy_row(way, size, {r: verdicts[way, r] for r in rankings})]
    result = {
        "spread": {name: round(value, 4) for name, value in spreads.items()},
        "rows": rows,
        "strategies": strategy_rows,
        "table": [
            *table(rows, names),
            "",
            *table(strategy_rows, ["strongest", "second", "third"]),
        ],
    }
    picture = partial(draw, [*rows, *strategy_rows])
    arguments.print_and_write(args, {**experiment.result_entries(), **result}, picture)


if __name__ == "__main__":
    main()
