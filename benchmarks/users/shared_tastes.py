"""What a prior over people is worth: simulated users whose tastes are known, with the prior and each alone.

    python -m benchmarks.users.shared_tastes --out shared_tastes.json

No model: features of two answers are random, a user chooses by the log-odds w . x, at a noise at which the
true taste itself tells about 85% of the choices. A share of the square of every user's taste is common to
all; the rest points anywhere. Fitted by `fit_users`, what `pad-vllm fit` runs, and measured by the cosine
with the true taste. Intervals are by bootstrap over the users of all populations; each population has a
common taste of its own.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from benchmarks.common import arguments
from benchmarks.common.prompt_intervals import mean_and_interval
from pad_vllm.choices.fit_users import fit_users
from pad_vllm.evaluation.win_rates_and_fluency import value_and_interval_text

FIRMNESS = 3.4
"""Spread of the log-odds of a choice: the true taste tells 85% of the choices."""


class Population(NamedTuple):
    """Simulated users."""

    differences: dict[str | None, Tensor]
    """User -> [N, D] features of the chosen answer less those of the other."""

    tastes: Tensor
    """[U, D], each of length 1."""


def draw_tastes(source: torch.Generator, users: int, dimensions: int, share: float) -> Tensor:
    """[U, D] tastes of length 1, of whose square a share is common to all."""
    common = normalize(torch.randn(dimensions, generator=source).double(), dim=-1)
    own = normalize(torch.randn(users, dimensions, generator=source).double(), dim=-1)
    return normalize(share**0.5 * common + (1 - share) ** 0.5 * own, dim=-1)


def make_population(args: argparse.Namespace, share: float, choices: int, seed: int) -> Population:
    """Users and their choices.

    Args:
        args: With --users and --dimensions.
        share: Of the square of every taste that is common to all.
        choices: Of each user.
        seed: Of everything that is drawn.
    """
    source = torch.Generator().manual_seed(seed)
    tastes = draw_tastes(source, args.users, args.dimensions, share)
    x = torch.randn(args.users, choices, args.dimensions, generator=source).double()
    log_odds = FIRMNESS * (x @ tastes.unsqueeze(-1))
    other = torch.rand(log_odds.shape, generator=source) > log_odds.sigmoid()
    x = torch.where(other, -x, x)
    return Population({str(user): rows for user, rows in enumerate(x)}, tastes)


def measure(population: Population) -> dict[str, Any]:
    """Cosines by user with the prior and without, shares of intervals that hold, the kind of prior taken."""
    found: dict[str, Any] = {}
    for name, with_prior in (("alone", False), ("prior", True)):
        fitted = fit_users(population.differences, with_prior=with_prior)
        weights = torch.stack([fit.w for fit in fitted.fits.values()])
        intervals = torch.stack([fit.interval * fit.scale for fit in fitted.fits.values()])
        truth = FIRMNESS * population.tastes
        held = (intervals[..., 0] <= truth) & (truth <= intervals[..., 1])
        found[name] = cosine_similarity(weights, population.tastes, dim=-1).tolist()
        found[f"held_{name}"] = float(held.double().mean())
        found["kind"] = fitted.prior.kind if fitted.prior else "none"
    return found


def result_row(
    share: float, choices: int, populations: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The result's row of a number of choices.

    Args:
        share: That is common.
        choices: Of each user.
        populations: From `measure`.
    """
    alone, prior = ([x for one in populations for x in one[key]] for key in ("alone", "prior"))
    return {
        "share": share,
        "choices": choices,
        "alone": mean_and_interval(alone),
        "prior": mean_and_interval(prior),
        "gain": mean_and_interval([b - a for a, b in zip(alone, prior, strict=True)]),
        "held_alone": round(statistics.mean(one["held_alone"] for one in populations), 3),
        "held_prior": round(statistics.mean(one["held_prior"] for one in populations), 3),
        "kinds": dict(Counter(one["kind"] for one in populations)),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a share and number of choices."""
    lines = [
        "| common | choices | alone | with the prior | gain | intervals hold, alone | with the prior |",
        "| ---: | ---: | --- | --- | --- | ---: | ---: |",
    ]
    for row in rows:
        numbers = [value_and_interval_text(row[key]) for key in ("alone", "prior", "gain")]
        held = [f"{row[key]:.0%}" for key in ("held_alone", "held_prior")]
        cells = [f"{row['share']:.0%}", str(row["choices"]), *numbers, *held]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__, base=None, adapter=None)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--dimensions", type=int, default=12)
    parser.add_argument("--choices", type=int, nargs="+", default=[5, 10, 20, 40])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25, 0.0])
    parser.add_argument("--populations", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for share in args.shares:
        for choices in args.choices:
            measured = [
                measure(make_population(args, share, choices, seed))
                for seed in range(args.populations)
            ]
            rows.append(result_row(share, choices, measured))
            print(table(rows[-1:])[-1], flush=True)
    result = {
        "command": arguments.command_line(),
        "users": args.users,
        "dimensions": args.dimensions,
        "populations": args.populations,
        "rows": rows,
        "table": table(rows),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
