"""Are choices better explained by sums or by means of features, and does length belong to it?

    python -m benchmarks.users.choice_forms --out choice_forms.json

No model: answers have lengths and tokens' features that are random, with a mean of their own, as rewards
have. A simulated user likes the sum or the mean of a reward, and may like short answers, too. Fitted in each
of the forms of `choice_form.py`, and in the one that left-out choices choose; measured by the cosine with the
true weights. Intervals are by bootstrap over the users.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from benchmarks.common import arguments
from benchmarks.common.prompt_intervals import mean_and_interval
from pad_vllm.choices.choice_form import FORMS, AnswerPairs, choose_form, has_length
from pad_vllm.choices.fit_weights import fit_weights
from pad_vllm.evaluation.win_rates_and_fluency import value_and_interval_text

CHOSEN = "chosen"
"""Way of a result: the form that left-out choices choose."""

_FIRMNESS = 3.0  # spread of the log-odds
_LENGTH_WEIGHT = 1.5  # spread of what a user who likes short answers adds to them


def make_user(
    likes: str, choices: int, seed: int, *, short: bool, dimensions: int
) -> tuple[AnswerPairs, Tensor]:
    """A user's choices and true weights [D].

    Args:
        likes: "mean" or "sum" of a reward.
        choices: How many.
        seed: Of everything that is drawn.
        short: Whether the user likes short answers, too.
        dimensions: D.
    """
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source).double()

    w = normalize(normal(dimensions), dim=0)
    lengths = (normal(choices, 2) * 0.6 + 4).exp().round().clamp(5, 400)
    of_answers = 0.3 * (normal(dimensions) + normal(choices, 2, dimensions))
    noise = normal(choices, 2, dimensions)
    sums = lengths.unsqueeze(-1) * of_answers + lengths.sqrt().unsqueeze(-1) * noise
    liked = (sums / lengths.unsqueeze(-1) if likes == "mean" else sums) @ w
    log_odds = _FIRMNESS * _difference_in_spreads(liked)
    if short:
        log_odds = log_odds - _LENGTH_WEIGHT * _difference_in_spreads(lengths.log())
    second = (torch.rand(choices, generator=source) > log_odds.sigmoid()).long()
    order, row = torch.stack((second, 1 - second), 1), torch.arange(choices).unsqueeze(1)
    return AnswerPairs(sums[row, order], lengths[row, order]), w


def _difference_in_spreads(values: Tensor) -> Tensor:
    """[N] of values [N, 2]."""
    difference = values[:, 0] - values[:, 1]
    return difference / difference.std()


def agreement(pairs: AnswerPairs, w: Tensor, form: str) -> float:
    """Cosine of the weights that are fitted in a form with the true ones."""
    fitted = fit_weights(pairs.differences(form), nuisance=int(has_length(form)))
    return float(cosine_similarity(fitted.w, w, dim=0))


def result_row(
    likes: str, *, short: bool, choices: int, users: int, dimensions: int
) -> dict[str, Any]:
    """The result's row of a kind of user; arguments as of `make_user`, users: how many of the kind."""
    by_form: dict[str, list[float]] = {form: [] for form in (*FORMS, CHOSEN)}
    taken: Counter[str] = Counter()
    for seed in range(users):
        pairs, w = make_user(likes, choices, seed, short=short, dimensions=dimensions)
        found = {form: agreement(pairs, w, form) for form in FORMS}
        form = choose_form([pairs])
        taken[form] += 1
        for name, value in {**found, CHOSEN: found[form]}.items():
            by_form[name].append(value)
    cosines = {form: mean_and_interval(values) for form, values in by_form.items()}
    row = {"likes": likes, "short": short, "choices": choices}
    return {**row, "cosines": cosines, "taken": dict(taken)}


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a kind of user and number of choices."""
    names = (*FORMS, CHOSEN)
    lines = [
        f"| the user likes | choices | {' | '.join(names)} |",
        f"| --- | ---: |{' --- |' * len(names)}",
    ]
    for row in rows:
        likes = f"the {row['likes']}{' and short answers' if row['short'] else ''}"
        cells = [value_and_interval_text(row["cosines"][name]) for name in names]
        lines.append(f"| {likes} | {row['choices']} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__, base=None, adapter=None)
    parser.add_argument("--users", type=int, default=60, help="of each kind")
    parser.add_argument("--dimensions", type=int, default=6)
    parser.add_argument("--choices", type=int, nargs="+", default=[10, 20, 40, 100])
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        result_row(
            likes, short=short, choices=choices, users=args.users, dimensions=args.dimensions
        )
        for likes in ("mean", "sum")
        for short in (False, True)
        for choices in args.choices
    ]
    sizes = {"users": args.users, "dimensions": args.dimensions}
    result = {"command": arguments.command_line(), **sizes, "rows": rows, "table": table(rows)}
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
