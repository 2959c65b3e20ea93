"""How few questions find a taste: proposed pairs of weights against random ones, by number of choices.

    python -m benchmarks.users.proposed_questions --out proposed_questions.json

No model: a simulated user chooses between answers guided by two weight vectors, by the log-odds v . (first -
second), at a noise at which the true taste itself tells 85% of the choices between random pairs. In some
populations tastes have much in common, or lie along few directions; the prior is then what `pad-vllm fit`
estimates from a hundred other users with twenty random choices each. All weights have length 1, but for the
last way.

    random          two directions
    random single   two of the dimensions, each in either sign
    one dimension   one of the dimensions, for more and for less of it
    Thompson        two samples of the posterior
    entropy         of 64 random pairs w, -w and as many samples: the largest expected reduction of entropy
    proposed        the directions of `propose_question`, what the package asks
    as asked        the same with its weights of length 1.5

Measured by the cosine with the true taste. Intervals are by bootstrap over the users.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize, one_hot

from benchmarks.common import arguments
from benchmarks.common.prompt_intervals import mean_and_interval
from pad_vllm.choices.logistic_posterior import GaussianPrior, WeightPosterior, weight_posterior
from pad_vllm.choices.next_question import LENGTH, propose_question
from pad_vllm.choices.taste_prior import estimate_prior
from pad_vllm.evaluation.win_rates_and_fluency import value_and_interval_text

ACCURACY = 0.85
OTHERS, CHOICES_OF_OTHERS = 100, 20  # whose choices the prior is estimated from
COMPARED_WITH = "random", 30  # "reached after" says how many questions find as much

_CANDIDATES = 64
_NODES, _NODE_WEIGHTS = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(15))

Strategy = Callable[[WeightPosterior, torch.Generator], Tensor]
"""Posterior of U users -> [U, D] first weights less second."""


def _normal(source: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=source).double()


def random_pairs(posterior: WeightPosterior, source: torch.Generator) -> Tensor:
    """Two directions."""
    first, second = normalize(_normal(source, 2, *posterior.mean.shape), dim=-1)
    return first - second


def random_singles(posterior: WeightPosterior, source: torch.Generator) -> Tensor:
    """Two single dimensions, each in either sign: never the same twice."""
    users, size = posterior.mean.shape
    chance = torch.ones(users, 2 * size)
    first, second = torch.multinomial(chance, 2, generator=source).T
    both = torch.cat((torch.eye(size), -torch.eye(size))).double()
    return both[first] - both[second]


def one_dimension(posterior: WeightPosterior, source: torch.Generator) -> Tensor:
    """More and less of one."""
    users, size = posterior.mean.shape
    return 2 * one_hot(torch.randint(size, (users,), generator=source), size).double()


def thompson(posterior: WeightPosterior, source: torch.Generator) -> Tensor:
    """Two samples."""
    first, second = (normalize(_sample(posterior, source), dim=-1) for _ in range(2))
    return first - second


def _sample(posterior: WeightPosterior, source: torch.Generator) -> Tensor:
    """A draw [U, D]."""
    root = torch.linalg.cholesky(posterior.covariance)
    noise = _normal(source, *posterior.mean.shape, 1)
    return posterior.mean + (root @ noise).squeeze(-1)


def entropy(posterior: WeightPosterior, source: torch.Generator) -> Tensor:
    """The best of random pairs and of samples, each against its opposite."""
    users, size = posterior.mean.shape
    sampled = [_sample(posterior, source) for _ in range(_CANDIDATES)]
    drawn = torch.cat((_normal(source, users, _CANDIDATES, size), torch.stack(sampled, 1)), 1)
    pairs = 2 * normalize(drawn, dim=-1)
    best = expected_information(pairs, posterior).argmax(-1)
    return pairs[torch.arange(users), best]


def expected_information(pairs: Tensor, posterior: WeightPosterior) -> Tensor:
    """[U, K] nats by which the outcome of pairs [U, K, D] reduces the posterior's entropy on average."""
    middle = pairs @ posterior.mean.unsqueeze(-1)
    spread = ((pairs @ posterior.covariance) * pairs).sum(-1, keepdim=True).sqrt()
    p = (middle + spread * _NODES).sigmoid()
    weights = _NODE_WEIGHTS / _NODE_WEIGHTS.sum()
    return _entropy(p @ weights) - _entropy(p) @ weights


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p) - torch.xlogy(1 - p, 1 - p)


def proposed(posterior: WeightPosterior, source: torch.Generator) -> Tensor:
    """The package's, at length 1."""
    return as_asked(posterior, source) / LENGTH


def as_asked(posterior: WeightPosterior, source: torch.Generator) -> Tensor:
    """The package's."""
    ones = zip(posterior.mean.split(1), posterior.covariance.split(1), strict=True)
    asked = [propose_question(WeightPosterior(*one), source) for one in ones]
    return torch.stack([first - second for first, second in asked])


STRATEGIES: dict[str, Strategy] = {
    "random": random_pairs,
    "random single": random_singles,
    "one dimension": one_dimension,
    "Thompson": thompson,
    "entropy": entropy,
    "proposed": proposed,
    "as asked": as_asked,
}


@dataclass(frozen=True)
class Population:
    """Where tastes come from."""

    name: str
    share: float = 0.0
    """Of the square of every taste that is common to all."""

    rank: int | None = None
    """In so many directions tastes differ; None: in all."""

    def tastes(self, users: int, dimensions: int, seed: int) -> Tensor:
        """[U, D] of length 1. What is common does not depend on the number of users."""
        source = torch.Generator().manual_seed(seed)
        common = normalize(_normal(source, dimensions), dim=-1)
        basis = _normal(source, self.rank or dimensions, dimensions)
        own = _normal(source, users, len(basis))
        own = normalize(own @ basis if self.rank else own, dim=-1)
        return normalize(self.share**0.5 * common + (1 - self.share) ** 0.5 * own, dim=-1)


POPULATIONS = (
    Population("nothing in common"),
    Population("a quarter in common", share=0.25),
    Population("half in common", share=0.5),
    Population("tastes along four directions", rank=4),
)


def firmness(tastes: Tensor) -> float:
    """The length of v at which v tells ACCURACY of the choices between random pairs."""
    source = torch.Generator().manual_seed(1)
    nobody = WeightPosterior(tastes, tastes)
    x = torch.stack([random_pairs(nobody, source) for _ in range(50)], 1)
    log_odds = (x @ tastes.unsqueeze(-1)).abs()
    low, high = 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        too_vague = (middle * log_odds).sigmoid().mean() < ACCURACY
        low, high = (middle, high) if too_vague else (low, middle)
    return low


def choose(x: Tensor, v: Tensor, source: torch.Generator) -> Tensor:
    """[U, D] the differences x, turned so that the user with log-odds v [U, D] chose the first."""
    other = torch.rand(len(x), generator=source) > (x * v).sum(-1).sigmoid()
    return torch.where(other.unsqueeze(-1), -x, x)


def prior_of_people(tastes: Tensor, v_length: float) -> GaussianPrior:
    """What OTHERS users' random choices say of people; tastes: [OTHERS, D]."""
    source = torch.Generator().manual_seed(2)
    nobody = WeightPosterior(tastes, tastes)
    x = [
        choose(random_pairs(nobody, source), v_length * tastes, source)
        for _ in range(CHOICES_OF_OTHERS)
    ]
    found = estimate_prior(list(torch.stack(x, 1))).prior
    return found or GaussianPrior.of_unit_weights(tastes.shape[1])


def posteriors(
    strategy: Strategy, prior: GaussianPrior, v: Tensor, questions: int
) -> list[WeightPosterior]:
    """After each of so many questions.

    Args:
        strategy: Who asks.
        prior: Of people.
        v: [U, D] log-odds of each user.
        questions: How many.
    """
    source = torch.Generator().manual_seed(3)
    nothing = torch.zeros(len(v), 1, v.shape[1]).double()
    found, x, every = weight_posterior(nothing, prior), nothing, []
    for _ in range(questions):
        asked = strategy(found, source)
        x = torch.cat((x, choose(asked, v, source).unsqueeze(1)), 1)
        found = weight_posterior(x, prior, averaged=True)
        every.append(found)
    return every


def result_rows(
    population: Population, args: argparse.Namespace, names: Sequence[str]
) -> list[dict[str, Any]]:
    """A row a strategy.

    Args:
        population: Whose users are asked.
        args: With --users, --dimensions and --choices.
        names: Of STRATEGIES.
    """
    everyone = population.tastes(args.users + OTHERS, args.dimensions, seed=0)
    length = firmness(everyone)
    tastes, others = everyone[: args.users], everyone[args.users :]
    told = population.share or population.rank
    prior = prior_of_people(others, length) if told else None
    prior = prior or GaussianPrior.of_unit_weights(args.dimensions)
    last, aim, rows = max(args.choices), None, []
    for name in names:
        every = posteriors(STRATEGIES[name], prior, length * tastes, last)
        cosines = [cosine_similarity(one.mean, tastes, dim=-1) for one in every]
        means = [float(one.mean()) for one in cosines]
        if name == COMPARED_WITH[0] and last >= COMPARED_WITH[1]:
            aim = means[COMPARED_WITH[1] - 1]
        reached = (n for n, mean in enumerate(means, 1) if aim is not None and mean >= aim)
        by_count = {str(n): cosines[n - 1].tolist() for n in args.choices}
        row = {
            "population": population.name,
            "asked": name,
            "cosines": {n: mean_and_interval(values) for n, values in by_count.items()},
            "reached_after": next(reached, None),
        }
        rows.append(row)
        print(table([row])[-1], flush=True)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a population and strategy."""
    counts = list(rows[0]["cosines"])
    heads = ["population", "asked", *(f"{n} choices" for n in counts)]
    heads += [f"reaches {' '.join(map(str, COMPARED_WITH))} after"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * (len(heads) - 1)} ---: |"]
    for row in rows:
        cosines = [value_and_interval_text(row["cosines"][n]) for n in counts]
        after = str(row["reached_after"] or f"more than {counts[-1]}")
        lines.append(f"| {' | '.join([row['population'], row['asked'], *cosines, after])} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__, base=None, adapter=None)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--dimensions", type=int, default=12)
    parser.add_argument("--choices", type=int, nargs="+", default=[5, 10, 12, 20, 30, 40])
    parser.add_argument("--asked", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for p in POPULATIONS for row in result_rows(p, args, args.asked)]
    sizes = {"users": args.users, "dimensions": args.dimensions}
    result = {"command": arguments.command_line(), **sizes, "rows": rows, "table": table(rows)}
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
