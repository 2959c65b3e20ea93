"""Do answers get better by what a profile learns from conversations? Two forms of the weights.

    python -m benchmarks.users.conversation_wins --loop conversation_loop.json --out conversation_wins.json

Users who like one dimension each, and never say so: their earlier turns were answered by the base told that
dimension's instruction ("told" dialogues of `conversation_loop`, whose result has what each teaches). A
profile takes the mean over its conversations, as if one more had taught nothing, and guides answers to other
prompts. Forms: "as read", the weights as they are; "in units", less what the base's own dialogues teach, over
what the dimension's own instruction teaches, at most 1 each. Beside them the weight 1, and asking. Wins are
over the unguided answers, by the dimension's judges that trained nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import arguments
from benchmarks.common.answer_experiment import AnswerExperiment
from benchmarks.common.independent_judges import Verdict, dimension_wins, dimension_wins_table
from benchmarks.users.conversation_loop import TOLD
from pad_vllm.profiles.profile import ProfileEvidence
from pad_vllm.profiles.profile_weights import WeightLearner
from pad_vllm.steering.comparison_conditions import (
    Condition,
    instructed_conditions,
    instructions_of,
    unguided_condition,
)

Weights = dict[str, float]
"""Dimension -> weight."""

AS_READ, IN_UNITS = "as read", "in units"
STATED, ASKED = "weight 1", "asked"


class TaughtWeights:
    """What dialogues of one `conversation_loop` teach."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        """Take its first number of prompts; result: of `conversation_loop`."""
        self._rows: dict[str, Mapping[str, Any]] = {}
        for row in result["rows"]:
            if row["way"] == TOLD:
                self._rows.setdefault(row["dimension"], row)
        self.dimensions = list(self._rows)

    def profile(self, liked: str, form: str, count: int) -> Weights:
        """Weights of a user after some conversations.

        Args:
            liked: the dimension that their answers were told.
            form: AS_READ or IN_UNITS.
            count: of conversations.
        """
        taught = self._rows[liked]["as_read" if form == AS_READ else "weights"][:count]
        evidence = ProfileEvidence(stated=None, conversations=tuple(taught))
        return WeightLearner(self.dimensions).learn(evidence).weights


def conditions_of(
    taught: TaughtWeights, counts: Sequence[int], beta: float
) -> dict[tuple[str, str], Condition]:
    """(Way, liked dimension) -> how its answers are drawn.

    Args:
        taught: by dialogues.
        counts: of conversations that a profile has.
        beta: the adapter's strength.
    """
    weights = {(STATED, name): {name: 1.0} for name in taught.dimensions} | {
        (f"{form}, {count}", name): taught.profile(name, form, count)
        for form in (AS_READ, IN_UNITS)
        for count in counts
        for name in taught.dimensions
    }
    return {
        (way, name): Condition(f"{way}: {name}", w, beta, aims={name: 1})
        for (way, name), w in weights.items()
    }


def result_rows(
    verdicts: Mapping[tuple[str, str], Verdict], conditions: Mapping[tuple[str, str], Condition]
) -> list[dict[str, Any]]:
    """A row a way, as plain JSON.

    Args:
        verdicts: By way and liked dimension.
        conditions: of the guided ones.
    """
    rows = []
    for way in dict.fromkeys(way for way, _ in verdicts):
        own = {name: verdict for (of_way, name), verdict in verdicts.items() if of_way == way}
        weights = {n: dict(conditions[way, n].weights) for n in own if way != ASKED}
        rows.append({"way": way, **dimension_wins(own), "weights": weights})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a way: wins and the weight of the liked dimension."""

    def weight(row: Mapping[str, Any], name: str) -> str:
        return f"; {row['weights'][name][name]:.2f}" if row["weights"] else ""

    return dimension_wins_table(rows, "wins %; weight", weight)


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__)
    arguments.add_judging_options(parser, tokens=64)
    parser.add_argument("--loop", type=Path, required=True, help="a result of conversation_loop")
    parser.add_argument("--conversations", type=int, nargs="+", default=[1, 8])
    args = parser.parse_args()
    experiment = AnswerExperiment.from_arguments(args)
    taught = TaughtWeights(json.loads(args.loop.read_text()))
    guided = conditions_of(taught, args.conversations, experiment.config.beta)
    told = instructed_conditions(instructions_of(experiment.config))
    asked = {(ASKED, name): one for name, one in zip(taught.dimensions, told, strict=True)}
    answers = experiment.draw([unguided_condition(), *guided.values(), *asked.values()])
    keys = [*guided, *asked]
    found = experiment.judges.verdicts(taught.dimensions, answers)[1:]
    rows = result_rows(dict(zip(keys, found, strict=True)), guided)
    result = {**experiment.result_entries(), "rows": rows, "table": table(rows)}
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
