"""What a prior over people wins with a real model's answers: users of a planted common taste, by choices.

    python -m benchmarks.users.shared_taste_wins --kept limits.answers.jsonl --out shared_taste_wins.json

The answers, judges and measures are those of choice_limits.py: a user chooses between answers that a real
model gave under random weights and their opposites, and the wins are over unguided answers to other prompts,
by the user's own taste. A share of the square of every taste is common to all users. `fit_users`, what
`pad-vllm fit` runs, fits each alone and all under the prior that it estimates. "told": share of such choices
that the user's own best weights tell. Intervals are by bootstrap over the users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import arguments
from benchmarks.common.prompt_intervals import mean_and_interval
from benchmarks.users.choice_limits import (
    JudgedAnswers,
    TestAnswers,
    judged_answers,
    make_answers_parser,
    told,
)
from benchmarks.users.shared_tastes import draw_tastes
from pad_vllm.choices.fit_users import fit_users
from pad_vllm.evaluation.win_rates_and_fluency import value_and_interval_text

PAIRS = "mix"
"""Kind of pair that is chosen between."""

_NOTHING = 1e-6
"""Largest entry of a sum of choices that cancel out: weights of 0 are then the likeliest."""


def shared_tastes(users: int, dimensions: int, share: float) -> Tensor:
    """[U, D] tastes of length 1, of whose square a share is common; the same ones each time."""
    return draw_tastes(torch.Generator().manual_seed(0), users, dimensions, share)


def learned(choices: Mapping[str, Tensor], *, with_prior: bool) -> Tensor:
    """[U, D] weights fitted to each user's choices [N, D]; 0 for a user whose choices cancel out."""
    usable = {user: rows for user, rows in choices.items() if rows.sum(0).abs().max() > _NOTHING}
    fits = fit_users(usable, with_prior=with_prior).fits
    nothing = torch.zeros(next(iter(choices.values())).shape[-1])
    return torch.stack([fits[user].w if user in fits else nothing for user in choices]).double()


def result_rows(
    judge: str, answers: JudgedAnswers, users: Tensor, share: float, counts: Sequence[int]
) -> list[dict[str, Any]]:
    """A row a number of choices.

    Args:
        judge: "rewards" or "meaning".
        answers: scored by that judge.
        users: [U, D] tastes.
        share: that is common.
        counts: numbers of choices.
    """
    offers, test = answers.offers_and_test(users)
    offer, best = offers[PAIRS], test.best()
    fixed = {
        "told": mean_and_interval(told(offer, PAIRS, test.slope())),
        "wins_best": mean_and_interval(test.wins(best).tolist()),
    }
    rows = []
    for count in counts:
        source = np.random.default_rng(count)
        choices = {
            str(user): offer.random_choices(PAIRS, user, count, source)
            for user in range(len(users))
        }
        ways = {
            "alone": learned(choices, with_prior=False),
            "prior": learned(choices, with_prior=True),
        }
        row = {"users": judge, "share": share, "choices": count, **fixed}
        row |= {way: _measured(test, w, best) for way, w in ways.items()}
        gain = test.wins(ways["prior"]) - test.wins(ways["alone"])
        rows.append({**row, "gain": mean_and_interval(gain.tolist())})
    return rows


def _measured(test: TestAnswers, w: Tensor, best: Tensor) -> dict[str, list[float]]:
    return {
        "cosine": mean_and_interval(test.cosine(w, best).tolist()),
        "wins": mean_and_interval(test.wins(w).tolist()),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a share and number of choices."""
    heads = "users like, common, choices, told, cosine alone, with the prior, wins alone, with the prior"
    lines = [
        f"| {heads.replace(', ', ' | ')} | gain | best weights win |",
        f"|{' --- |' * 10}",
    ]
    for row in rows:
        values = [row[way][name] for name in ("cosine", "wins") for way in ("alone", "prior")]
        numbers = [value_and_interval_text(x) for x in (row["told"], *values, row["gain"])]
        cells = [row["users"], f"{row['share']:.0%}", str(row["choices"]), *numbers]
        lines.append(f"| {' | '.join(cells)} | {value_and_interval_text(row['wins_best'])} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = make_answers_parser(__doc__)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25, 0.0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    judged, accuracies = judged_answers(args)
    rows = []
    for judge, answers in judged.items():
        for share in args.shares:
            users = shared_tastes(args.users, answers.plain.shape[-1], share)
            rows += result_rows(judge, answers, users, share, args.choices)
    result = {
        "command": arguments.command_line(),
        "users": args.users,
        "judges": accuracies,
        "rows": rows,
        "table": table(rows),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
