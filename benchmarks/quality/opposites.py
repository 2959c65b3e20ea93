r"""Less of a dimension: its negative weight, beside a prompt that asks for the opposite.

    python -m benchmarks.quality.opposites --base qwen2.5-coder-0.5b --adapter demo-trunk --dtype bfloat16 \
        --opposite formal="Answer in a casual way, with slang." --beside taught=ADAPTER --out opposites.json

Every prompt is answered plainly, told the opposite sentence, and under each adapter's weight of -1. Wins are
over the plain answers, by the dimension's judges that trained nothing: 0% where no answer has more of the
dimension than the plain one. What asking for the opposite reaches bounds what these judges can see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import arguments
from benchmarks.common.answer_experiment import AnswerExperiment
from benchmarks.common.independent_judges import dimension_wins, dimension_wins_table
from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.steering.comparison_conditions import (
    guided_conditions,
    instructed_conditions,
    unguided_condition,
)
from pad_vllm.steering.guided_answers import DrawnAnswer

ASKED, NEGATIVE = "asked for the opposite", "weight -1"


def drawn(
    experiment: AnswerExperiment, opposites: Mapping[str, str], beside: Mapping[str, str]
) -> dict[tuple[str, str], list[DrawnAnswer]]:
    """Answers by (way, dimension); the plain ones are those of ("", "").

    Args:
        experiment: Adapter and prompts.
        opposites: Dimension -> sentence that asks for its opposite.
        beside: Name -> folder of an adapter with the same dimensions.
    """
    names = list(opposites)
    own = guided_conditions("PAD", names, [experiment.config.beta], signs=(-1,))
    told = instructed_conditions(opposites)
    answers = experiment.draw([unguided_condition(), *told, *own])
    ways = [("", ""), *((ASKED, name) for name in names), *((NEGATIVE, name) for name in names)]
    by_way = dict(zip(ways, answers, strict=True))
    for label, folder in beside.items():
        guided = guided_conditions(label, names, [read_config(folder).beta], signs=(-1,))
        rows = experiment.draw(guided, folder)
        by_way |= {
            (f"{label}, {NEGATIVE}", name): row for name, row in zip(names, rows, strict=True)
        }
    return by_way


def result_rows(
    experiment: AnswerExperiment, answers: Mapping[tuple[str, str], Sequence[DrawnAnswer]]
) -> list[dict[str, Any]]:
    """A row a way, as plain JSON."""
    keys = list(answers)
    names = list(dict.fromkeys(name for _, name in keys if name))
    verdicts = dict(
        zip(keys, experiment.judges.verdicts(names, list(answers.values())), strict=True)
    )
    rows = []
    for way in dict.fromkeys(way for way, _ in keys if way):
        own = {name: verdicts[way, name] for name in names}
        rows.append({"way": way, **dimension_wins(own)})
    return rows


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__)
    arguments.add_judging_options(parser, tokens=100)
    parser.add_argument("--opposite", type=arguments.name_and_value, action="append", required=True)
    parser.add_argument("--beside", type=arguments.name_and_value, action="append", default=[])
    args = parser.parse_args()
    opposites = dict(args.opposite)
    args.adapter = resolve_adapter(args.adapter, args.base)
    args.dimensions = list(opposites)
    experiment = AnswerExperiment.from_arguments(args)
    answers = drawn(experiment, opposites, dict(args.beside))
    rows = result_rows(experiment, answers)
    result = {
        **experiment.result_entries(),
        "opposites": opposites,
        "rows": rows,
        "answers": [
            {"way": way or "unguided", "dimension": name, "texts": [one.text for one in row]}
            for (way, name), row in answers.items()
        ],
        "table": dimension_wins_table(rows),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
