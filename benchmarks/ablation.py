"""What of a reward does the work? The same adapter with parts of it replaced, at the same spread.

    python benchmarks/ablation.py --steering koala.jsonl --judge-prompts J --out ablation.json

no reward   the base's candidates as the base ranks them: how far judges of two draws agree by chance
as trained  each dimension alone
random      heads of normally distributed numbers
shuffled    the next dimension's heads, judged as this one
constants   a bias over the vocabulary, without the state
state       heads without their constants

and what to do with a wish of several strengths (1, 0.5, 0.25), all weights summing to one:

uniform     every dimension of the wish alike
normalised  as wished
maximum     all of it on the strongest

The variants stand side by side as dimensions of one adapter, and answer in one batch. Each pays as much as
the dimension it stands for: the same spread over the base's candidates, read from plain answers.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import arguments
import torch
from candidates import Reader
from jury import Verdict, Wins, share, shown, text
from matplotlib.figure import Figure
from setting import Setting
from users import Space

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import save_adapter
from pad_vllm.adapter.combine_adapters import AdapterPart, merge_adapters
from pad_vllm.steering import comparison_conditions
from pad_vllm.steering.comparison_conditions import Condition

NO_REWARD, AS_TRAINED, SHUFFLED = "no reward", "as trained", "shuffled"
RANDOM, CONSTANTS, STATE = "random", "constants", "state"
WISH = (1.0, 0.5, 0.25)
UNIFORM, NORMALISED, MAXIMUM = "uniform", "normalised", "maximum"


def variants(adapter: Adapter, seed: int) -> dict[str, Adapter]:
    """Of all dimensions at once; without constants there is nothing to part them from."""
    source = torch.Generator().manual_seed(seed)
    A, B, C = adapter.heads
    none = torch.zeros_like(C) if C is not None else None

    def drawn(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=source)

    heads = {RANDOM: (drawn(A), drawn(B), none)}
    if C is not None:
        heads |= {CONSTANTS: (torch.zeros_like(A), torch.zeros_like(B), C), STATE: (A, B, none)}
    made = {name: Adapter(adapter.config, adapter.lora, *three) for name, three in heads.items()}
    return {name: _renamed(name, one) for name, one in made.items()}


def called(variant: str, dimension: str) -> str:
    """A variant's dimension in the adapter that holds all."""
    return dimension if variant == AS_TRAINED else f"{variant}_{dimension}"


def _renamed(variant: str, adapter: Adapter) -> Adapter:
    names = tuple(called(variant, name) for name in adapter.config.dimensions)
    return dataclasses.replace(
        adapter, config=dataclasses.replace(adapter.config, dimensions=names)
    )


def spreads(setting: Setting, adapter: Adapter) -> dict[str, float]:
    """Of each dimension's rewards over the base's candidates, in logits."""
    space = Space(Reader.of(setting.base, adapter))
    space.read(setting.others, setting.plain, {})
    squares = space.gram.diagonal() / space.tokens
    return dict(zip(adapter.config.dimensions, squares.sqrt().tolist(), strict=True))


def alone(
    names: Sequence[str], known: Mapping[str, float]
) -> dict[tuple[str, str], dict[str, float]]:
    """(variant, dimension that it stands for) -> weights. known: spreads."""
    found = {}
    for place, name in enumerate(names):
        stand_ins = {v: called(v, name) for v in (AS_TRAINED, RANDOM, CONSTANTS, STATE)}
        if len(names) > 1:
            stand_ins[SHUFFLED] = names[(place + 1) % len(names)]
        for variant, other in stand_ins.items():
            if known.get(other):
                found[variant, name] = {other: float(f"{known[name] / known[other]:.4g}")}
    return found


def strategies(
    names: Sequence[str], size: int
) -> dict[tuple[str, tuple[str, ...]], dict[str, float]]:
    """(strategy, wished, strongest first) -> weights; every dimension is the strongest once."""
    found = {}
    for place in range(len(names)):
        wished = tuple(names[(place + step) % len(names)] for step in range(size))
        total = sum(WISH[:size])
        ways = {
            UNIFORM: dict.fromkeys(wished, 1 / size),
            NORMALISED: {name: w / total for name, w in zip(wished, WISH, strict=False)},
            MAXIMUM: {wished[0]: 1.0},
        }
        found |= {(way, wished): weights for way, weights in ways.items()}
    return found


def over_dimensions(wins: Sequence[Wins], weights: Sequence[float] | None = None) -> list[float]:
    """`share` of the mean over dimensions, by prompt: one prompt's answers are not apart."""
    weights = weights or [1.0] * len(wins)
    return share([_mean(column, weights) for column in zip(*wins, strict=True)])


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def row(name: str, found: Mapping[str, Verdict]) -> dict[str, Any]:
    """found: by the dimension that is judged."""
    wins = [one.wins[dimension] for dimension, one in found.items()]
    by_dimension = {d: round(statistics.mean(w), 3) for d, w in zip(found, wins, strict=True)}
    return {
        "variant": name,
        "wins": over_dimensions(wins),
        "of": by_dimension,
        **text(list(found.values())),
    }


def strategy_row(way: str, size: int, some: Mapping[tuple[str, ...], Verdict]) -> dict[str, Any]:
    """some: by what was wished, strongest first."""
    by_rank = [[one.wins[wished[rank]] for wished, one in some.items()] for rank in range(size)]
    pooled = [[statistics.mean(column) for column in zip(*wins, strict=True)] for wins in by_rank]
    return {
        "variant": f"{way} of {size}",
        "wins": over_dimensions(pooled, WISH[:size]),
        "ranks": [round(statistics.mean(wins), 3) for wins in pooled],
        **text(list(some.values())),
    }


def table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    lines = [
        f"| variant | wins | {' | '.join(names)} | perplexity | repeated |",
        f"| --- | --- | {' | '.join(['---:'] * len(names))} | ---: | ---: |",
    ]
    for r in rows:
        each = r["of"].get if "of" in r else dict(zip(names, r["ranks"], strict=False)).get
        cells = [
            f"{100 * value:.0f}" if (value := each(name)) is not None else "" for name in names
        ]
        cost = f"{r['perplexity']:.2f}x | {r['repeated_more']:+.1%}"
        lines.append(f"| {r['variant']} | {shown(r['wins'])} | {' | '.join(cells)} | {cost} |")
    return lines


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(6, 0.4 * len(rows) + 1), dpi=100, layout="constrained")
    axes = figure.subplots()
    for place, r in enumerate(rows):
        mean, low, high = (100 * x for x in r["wins"])
        axes.errorbar(
            mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color="C0", capsize=3
        )
    axes.axvline(50, color="0.7", linewidth=1)
    axes.set_yticks(range(len(rows)), [r["variant"] for r in rows])
    axes.invert_yaxis()
    axes.set_xlabel("wins over the unguided answers, %, mean over dimensions")
    figure.savefig(path)


def drawn(
    setting: Setting, adapter: Adapter, asked: Mapping[Any, Mapping[str, float]]
) -> dict[Any, Verdict]:
    """By the keys of asked, whose values are weights."""
    guided = [Condition(str(key), w, setting.config.beta) for key, w in asked.items()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "variants"
        save_adapter(adapter, path, "# Variants, side by side\n")
        said = setting.answers([comparison_conditions.unguided_condition(), *guided], str(path))
    _, *verdicts = setting.jury.verdicts(setting.dimensions, said)
    return dict(zip(asked, verdicts, strict=True))


def main() -> None:
    parser = arguments.parser(__doc__)
    arguments.add_question(parser, tokens=48)
    parser.add_argument("--seed", type=int, default=0, help="of the random heads")
    args = parser.parse_args()
    setting = Setting.of(args)
    setting.require_heads()
    names, trained = setting.dimensions, setting.adapter
    adapter = merge_adapters(
        [AdapterPart(a, {}) for a in (trained, *variants(trained, args.seed).values())]
    )
    known = spreads(setting, adapter)
    singles = alone(names, known)
    sizes = [size for size in (2, 3) if size <= len(names)]
    mixed = {key: w for size in sizes for key, w in strategies(names, size).items()}
    # All on the strongest is that dimension alone, as trained.
    others = {key: w for key, w in mixed.items() if key[0] != MAXIMUM}
    found = drawn(setting, adapter, {NO_REWARD: {names[0]: 0.0}, **singles, **others})
    found |= {key: found[AS_TRAINED, key[1][0]] for key in mixed if key[0] == MAXIMUM}
    rows = [row(NO_REWARD, dict.fromkeys(names, found[NO_REWARD]))]
    for variant in dict.fromkeys(variant for variant, _ in singles):
        rows += [row(variant, {d: found[v, d] for v, d in singles if v == variant})]
    ways = [
        strategy_row(way, size, {w: found[v, w] for v, w in mixed if v == way and len(w) == size})
        for size in sizes
        for way in (UNIFORM, NORMALISED, MAXIMUM)
    ]
    lines = [*table(rows, names), "", *table(ways, ["strongest", "second", "third"])]
    spread = {name: round(value, 4) for name, value in known.items()}
    result = {"spread": spread, "rows": rows, "strategies": ways, "table": lines}
    arguments.tell(args, {**setting.about(), **result}, partial(draw, [*rows, *ways]))


if __name__ == "__main__":
    main()
