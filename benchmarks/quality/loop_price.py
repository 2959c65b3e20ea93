"""Do loops end where they cost something? Long answers under `pad_loop_price`.

    python -m benchmarks.quality.loop_price --limit 24 --out loop_price.json

Every prompt is answered plainly, and guided by each dimension at each price. Repeated: share of repeated
4-grams. Wins over the plain answers are by the dimension's lexical judges that trained nothing, averaged.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import arguments
from benchmarks.common.answer_cache import AnswerCache
from benchmarks.common.independent_judges import (
    mean_by_prompt,
    percent_with_interval,
    win_rate_and_interval,
)
from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.evaluation.lexical_scorers import LEXICAL_JUDGES, LEXICAL_SCORERS
from pad_vllm.evaluation.win_rates_and_fluency import (
    mean_repeated,
    perplexity,
    wins_by_prompt,
)
from pad_vllm.steering.comparison_conditions import Condition, unguided_condition
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    DecodingSettings,
    DrawnAnswer,
    known_losses,
)
from pad_vllm.steering.training_record import judges_that_taught
from pad_vllm.training.sampling.sample_responses import read_prompts


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


def table(plain: float, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a condition; plain: the share that the plain answers repeat."""
    lines = [
        "| dimension | price | repeated | perplexity | wins % | words |",
        "| --- | ---: | ---: | ---: | --- | ---: |",
        f"| none |  | {plain:.1%} | 1.00x |  |  |",
    ]
    for row in rows:
        wins = percent_with_interval(row["wins"]) if row["wins"] else ""
        cells = [row["dimension"], f"{row['price']:g}", f"{row['repeated']:.1%}"]
        cells += [f"{row['perplexity']:.2f}x", wins, f"{row['words']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__)
    arguments.add_judging_options(parser, tokens=300)
    parser.add_argument("--prices", type=float, nargs="+", default=[0.0, 0.25, 0.5, 1.0])
    parser.add_argument("--limit", type=int, help="number of prompts (default: all)")
    args = parser.parse_args()
    adapter = resolve_adapter(args.adapter, args.base)
    config = read_config(adapter)
    points = [(name, p) for name in args.dimensions or config.dimensions for p in args.prices]
    conditions = [
        Condition(
            f"{name} {price:g}",
            {name: 1.0},
            config.beta,
            request_arguments={"pad_loop_price": price},
        )
        for name, price in points
    ]
    batch = AnswerBatch(
        args.base,
        adapter,
        read_prompts(args.prompts)[: args.limit],
        [unguided_condition(), *conditions],
        [DecodingSettings(args.temperature, args.tokens, dtype="float32")],
    )
    cache = AnswerCache(args.kept or args.out.with_suffix(".answers.jsonl"))
    ((plain, *guided),) = cache.draw(batch)
    taught = judges_that_taught(config)
    judges = {
        name: [judge for judge in LEXICAL_JUDGES.get(name, ()) if judge not in taught[name]]
        for name in config.dimensions
    }
    rows = [
        {"dimension": name, "price": price, **measured(answers, plain, judges[name])}
        for (name, price), answers in zip(points, guided, strict=True)
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
