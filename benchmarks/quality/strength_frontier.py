"""How far do answers go, and at what perplexity, by strength, number of candidates and guard?

    python -m benchmarks.quality.strength_frontier --base qwen2.5-coder-0.5b --adapter demo --dtype bfloat16 \
        --points prefix:1.0:100:0 prefix:1.5:20:0.03 sentence:2:20:0.03 --out strength_frontier.json

Each point is KIND:BETA:K:MIN_P; KIND is `heads` (of an adapter with or without a trunk), `prefix` (its
learned ones) or `sentence` (untrained, `pad_preference`). All of an adapter's dimensions that have an
instruction are answered at each point; perplexity, repetition, derailed starts and the way
(`pad_vllm/steering/way.py`) are those of `pad-vllm dose`, by prompts that no evaluation uses. What counts is
the way at the perplexity that asking in the prompt has (1.00 in the table).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import arguments
from pad_vllm.adapter.manifest import AdapterConfig, read_config
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.steering.comparison_conditions import Condition, instructions_of
from pad_vllm.steering.dimension_judges import load_judges
from pad_vllm.steering.dose import HEADS, PREFIX, TOLD, DoseRow
from pad_vllm.steering.dose_trial import DoseTrial
from pad_vllm.steering.evaluation_prompts import JUDGE_PROMPTS
from pad_vllm.steering.guided_answers import DecodingSettings
from pad_vllm.training.sampling.sample_responses import read_prompts

SENTENCE = "sentence"
KINDS = (HEADS, PREFIX, SENTENCE)


class GridPoint(NamedTuple):
    """One setting at which every dimension is answered."""

    kind: str
    beta: float
    top_k: int
    min_p: float

    @classmethod
    def parse(cls, text: str) -> GridPoint:
        """Of KIND:BETA:K:MIN_P. Raises ValueError."""
        kind, beta, top_k, min_p = text.split(":")
        if kind not in KINDS:
            raise ValueError(f"{text}: accepted kinds are {', '.join(KINDS)}")
        return cls(kind, float(beta), int(top_k), float(min_p))

    def condition(self, dimension: str, sentence: str) -> Condition:
        """The requests for one dimension."""
        label = f"{self.kind} {dimension} {self.beta:g} {self.top_k} {self.min_p:g}"
        requested = {"pad_top_k": self.top_k, "pad_min_p": self.min_p}
        if self.kind == HEADS:
            return Condition(label, {dimension: 1.0}, self.beta, request_arguments=requested)
        preference = dimension if self.kind == PREFIX else sentence
        asked = {"pad_preference": preference, "pad_beta": self.beta, **requested}
        return Condition(label, request_arguments=asked)


def tried_points(
    config: AdapterConfig, grid: Sequence[GridPoint]
) -> list[tuple[DoseRow, Condition]]:
    """Fields of a row, and the condition, of each dimension and point."""
    prefixes = {} if config.prefixes is None else config.prefixes.digests
    points = []
    for (name, sentence), point in itertools.product(instructions_of(config).items(), grid):
        if point.kind != PREFIX or name in prefixes:
            fields = {"dimension": name, **point._asdict()}
            points.append((fields, point.condition(name, sentence)))
    return points


def mean_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each point over the dimensions: mean and smallest way, and the geometric mean of perplexity over
    that of asking.
    """
    told = {row["dimension"]: row["perplexity"] for row in rows if row["kind"] == TOLD}
    groups: dict[GridPoint, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["kind"] != TOLD:
            point = GridPoint(row["kind"], row["beta"], row["top_k"], row["min_p"])
            groups.setdefault(point, []).append(row)
    means = []
    for point, group in groups.items():
        ways = [row["way"][0] for row in group]
        over = [math.log(row["perplexity"] / told[row["dimension"]]) for row in group]
        means.append(
            {
                **point._asdict(),
                "way": round(statistics.mean(ways), 3),
                "least_way": min(ways),
                "over_told": round(math.exp(statistics.mean(over)), 3),
                "derailed": round(statistics.mean(row["derailed"] for row in group), 4),
                "repeated": round(statistics.mean(row["repeated"] for row in group), 4),
            }
        )
    return means


def table(means: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a row a point."""
    lines = [
        "| by | beta | candidates | min_p | way | least way | perplexity over told's | repeated | derailed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in means:
        setting = f"{row['kind']} | {row['beta']:g} | {row['top_k']} | {row['min_p']:g}"
        ways = f"{row['way']:.2f} | {row['least_way']:.2f} | {row['over_told']:.2f}x"
        lines.append(f"| {setting} | {ways} | {row['repeated']:.1%} | {row['derailed']:.1%} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__, base="qwen2.5-coder-0.5b")
    parser.add_argument("--points", type=GridPoint.parse, nargs="+", required=True)
    parser.add_argument("--prompts", type=Path, default=JUDGE_PROMPTS, help="default: judges' 40")
    parser.add_argument("--limit", type=int, help="number of prompts (default: all)")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    base = resolve_base(args.base)
    adapter = resolve_adapter(args.adapter, args.base)
    decoding = DecodingSettings(args.temperature, args.tokens, dtype=args.dtype)
    prompts = read_prompts(args.prompts)[: args.limit]
    points = tried_points(read_config(adapter), args.points)
    trial = DoseTrial(base, adapter, prompts, points, decoding)
    answers = trial.answers(args.out.with_suffix(".answers.json"), print)
    rows = trial.rows(answers, load_judges(base, decoding, trial.instructions))
    means = mean_rows(rows)
    result = {
        "command": arguments.command_line(),
        "prompts": len(prompts),
        "tokens": args.tokens,
        "dtype": args.dtype,
        "rows": rows,
        "means": means,
        "table": table(means),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
