"""Do loops end where they cost something? Long answers under `pad_loop_price`.

    python -m benchmarks.quality.loop_price --limit 24 --out loop_price.json

Every prompt is answered plainly, and guided by each dimension at each price, by its head and by its learned
prefix where it has one. Repeated: share of repeated 4-grams. Wins over the plain answers are by the
dimension's lexical judges that trained nothing, averaged. Gain: nats a token by which the base that is told
the dimension's instruction prefers an answer to what the base makes of it, less the same of plain answers.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from benchmarks.common import arguments
from benchmarks.common.answer_cache import AnswerCache
from benchmarks.common.independent_judges import (
    mean_by_prompt,
    percent_with_interval,
    win_rate_and_interval,
)
from pad_vllm.adapter.manifest import AdapterConfig, read_config
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.evaluation.lexical_scorers import LEXICAL_JUDGES, LEXICAL_SCORERS
from pad_vllm.evaluation.win_rates_and_fluency import (
    mean_repeated,
    perplexity,
    wins_by_prompt,
)
from pad_vllm.steering.comparison_conditions import (
    Condition,
    instructions_of,
    prefix_conditions,
    unguided_condition,
)
from pad_vllm.steering.dimension_judges import load_judges
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    DecodingSettings,
    DrawnAnswer,
    known_losses,
)
from pad_vllm.steering.training_record import judges_that_taught
from pad_vllm.steering.way import AnswerReading
from pad_vllm.training.sampling.sample_responses import read_prompts


class Point(NamedTuple):
    """One dimension at one price."""

    dimension: str
    by: str
    price: float
    condition: Condition


def points(
    config: AdapterConfig, dimensions: Sequence[str], prices: Sequence[float]
) -> list[Point]:
    """What is compared.

    Args:
        config: of the adapter, whose default strengths hold.
        dimensions: some of its own.
        prices: of a loop.
    """
    guided = [("head", Condition(name, {name: 1.0}, config.beta)) for name in dimensions]
    if config.prefixes is not None:
        by_prefix = prefix_conditions(config.prefixes, dimensions, ())
        guided += [("prefix", one) for one in by_prefix if min(one.aims.values()) > 0]
    return [
        Point(
            next(iter(one.aims or one.weights)),
            by,
            price,
            replace(
                one,
                name=f"{by} {one.name} {price:g}",
                request_arguments={**one.request_arguments, "pad_loop_price": price},
            ),
        )
        for by, one in guided
        for price in prices
    ]


def repeated(answers: Sequence[DrawnAnswer]) -> float:
    """Mean share of repeated 4-grams."""
    return mean_repeated([answer.text for answer in answers])


def measured(
    answers: Sequence[DrawnAnswer], plain: Sequence[DrawnAnswer], judges: Sequence[str]
) -> dict[str, Any]:
    """What a condition's answers are beside the plain ones; judges: lexical ones."""
    wins = [
        wins_by_prompt(*([LEXICAL_SCORERS[name](a.text) for a in row] for row in (answers, plain)))
        for name in judges
    ]
    return {
        "repeated": round(repeated(answers), 4),
        "perplexity": round(perplexity(known_losses(answers)) / perplexity(known_losses(plain)), 3),
        "words": round(statistics.mean(len(answer.text.split()) for answer in answers), 1),
        "judges": list(judges),
        "wins": win_rate_and_interval(mean_by_prompt(wins)) if wins else None,
    }


def gain_reader(
    args: argparse.Namespace,
    batch: AnswerBatch,
    config: AdapterConfig,
    plain: Sequence[DrawnAnswer],
) -> Callable[[str, Sequence[DrawnAnswer]], float | None]:
    """Measures a dimension's answers; None for a dimension without an instruction.

    Args:
        args: The command line, with the base.
        batch: What was drawn.
        config: Of the adapter.
        plain: Unguided answers.
    """
    instructions = instructions_of(config)
    judges = load_judges(args.base, batch.decodings[0], instructions)

    def mean_gap(answers: Sequence[DrawnAnswer], instruction: str) -> float:
        read = [judges.losses(batch.prompts, answers, "", told) for told in ("", instruction)]
        return statistics.mean(AnswerReading(*read).gaps())

    def gain(dimension: str, answers: Sequence[DrawnAnswer]) -> float | None:
        if dimension not in instructions:
            return None
        told = instructions[dimension]
        return round(mean_gap(answers, told) - mean_gap(plain, told), 3)

    return gain


def table(plain: float, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a condition; plain: the share that the plain answers repeat."""
    lines = [
        "| dimension | by | price | repeated | perplexity | wins % | gain | words |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: |",
        f"| none |  |  | {plain:.1%} | 1.00x |  |  |  |",
    ]
    for row in rows:
        wins = percent_with_interval(row["wins"]) if row["wins"] else ""
        gain = "" if row["gain"] is None else f"{row['gain']:.2f}"
        cells = [row["dimension"], row["by"], f"{row['price']:g}", f"{row['repeated']:.1%}"]
        cells += [f"{row['perplexity']:.2f}x", wins, gain, f"{row['words']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__)
    arguments.add_judging_options(parser, tokens=300)
    parser.add_argument("--prices", type=float, nargs="+", default=[0.0, 0.25, 0.5, 1.0])
    parser.add_argument("--limit", type=int, help="number of prompts (default: all)")
    parser.add_argument("--no-gain", action="store_true", help="which takes most of the time")
    args = parser.parse_args()
    adapter = resolve_adapter(args.adapter, args.base)
    config = read_config(adapter)
    compared = points(config, args.dimensions or config.dimensions, args.prices)
    batch = AnswerBatch(
        args.base,
        adapter,
        read_prompts(args.prompts)[: args.limit],
        [unguided_condition(), *(point.condition for point in compared)],
        [DecodingSettings(args.temperature, args.tokens, dtype=args.dtype)],
        {"instructions": True} if config.prefixes else {},
    )
    cache = AnswerCache(args.kept or args.out.with_suffix(".answers.jsonl"))
    ((plain, *guided),) = cache.draw(batch)
    taught = judges_that_taught(config)
    judges = {
        name: [judge for judge in LEXICAL_JUDGES.get(name, ()) if judge not in taught[name]]
        for name in config.dimensions
    }
    gain = (lambda *_: None) if args.no_gain else gain_reader(args, batch, config, plain)
    rows = [
        {
            "dimension": point.dimension,
            "by": point.by,
            "price": point.price,
            **measured(answers, plain, judges[point.dimension]),
            "gain": gain(point.dimension, answers),
        }
        for point, answers in zip(compared, guided, strict=True)
    ]
    result = {
        "command": arguments.command_line(),
        "prompts": len(batch.prompts),
        "temperature": args.temperature,
        "tokens": args.tokens,
        "rows": rows,
        "table": table(repeated(plain), rows),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
