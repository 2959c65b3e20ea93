"""What more choices should bring, and what an experiment on ten users sees of it: the truth is known.

    python -m benchmarks.users.planted_limits --out planted_limits.json

No model: the features of an answer under weights w are SHIFT G w plus noise of deviation one, G the products
of four dimensions' rewards; users like a sum of features and choose without error. SHIFT is such that the
taste itself, at one logit, wins two thirds against unguided answers, as it does in `users.json`. Offers, fits
and measures are those of choice_limits.py. "Seen" is the mean, and the range in 95 of 100, of simulated
experiments of ten users and twenty prompts: the wins after 100 choices less those after ten.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import arguments
from benchmarks.users.choice_limits import (
    OFFERS,
    Offer,
    TestAnswers,
    fitted,
    result_rows,
    table,
    tastes,
)

SHIFT = 0.62
PRODUCTS = torch.tensor(
    [[1.0, 0.5, 0.4, 0.0], [0.5, 0.8, 0.3, 0.1], [0.4, 0.3, 0.9, 0.0], [0.0, 0.1, 0.0, 0.5]]
).double()
"""[D, D]: the first three overlap as `positive`, `friendly` and `simple` do, the fourth hardly does."""

_LEARN, _TEST, _MIXES = 200, 400, 8
_EXPERIMENTS, _USERS, _PROMPTS = 200, 10, 20


def at_one_logit(w: Tensor) -> Tensor:
    """Weights [..., D] scaled to rewards of that spread."""
    return w / ((w @ PRODUCTS) * w).sum(-1, keepdim=True).sqrt()


def offered_weights(kind: str, source: torch.Generator) -> Tensor:
    """[C, D], each followed by its opposite; kind: of OFFERS."""
    size = len(PRODUCTS)
    rows = torch.eye(size) if kind == "single" else torch.randn(_MIXES, size, generator=source)
    return OFFERS[kind] * at_one_logit(torch.stack((rows, -rows), 1).flatten(0, 1).double())


def features(w: Tensor, prompts: int, source: torch.Generator) -> Tensor:
    """[..., P, D] of answers under w [..., D]."""
    noise = torch.randn(*w.shape[:-1], prompts, w.shape[-1], generator=source).double()
    return SHIFT * (w @ PRODUCTS).unsqueeze(-2) + noise


def seen(offer: Offer, users: Tensor, source: torch.Generator) -> list[float]:
    """[mean, low, high] in points of what experiments see: wins after 100 choices less those after ten."""
    eye = torch.eye(users.shape[1]).double()
    weights = {
        n: torch.stack([fitted(offer, "single", u, n, eye) for u in range(len(users))], 1)
        for n in (10, 100)
    }  # [DRAWS, U, D]
    gains = []
    for _ in range(_EXPERIMENTS):
        some = torch.randperm(len(users), generator=source)[:_USERS]
        draw = int(torch.randint(len(weights[10]), (), generator=source))
        unguided = features(torch.zeros(_USERS, users.shape[1]).double(), _PROMPTS, source)
        wins = []
        for w in weights.values():
            answers = features(at_one_logit(w[draw, some]), _PROMPTS, source)
            better = torch.einsum("upd,ud->up", answers - unguided, users[some]) > 0
            wins.append(float(better.double().mean()))
        gains.append(100 * (wins[1] - wins[0]))
    low, high = np.quantile(gains, (0.025, 0.975))
    return [round(float(x), 1) for x in (np.mean(gains), low, high)]


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__, base=None, adapter=None)
    parser.add_argument("--choices", type=int, nargs="+", default=[5, 10, 20, 30, 100])
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = torch.Generator().manual_seed(0)
    users = tastes(len(PRODUCTS))
    weights = {kind: offered_weights(kind, source) for kind in OFFERS}

    def likings(w: Tensor, prompts: int) -> Tensor:
        return torch.einsum("ud,cpd->ucp", users, features(w, prompts, source))

    offers = {kind: Offer(w, likings(w, _LEARN)) for kind, w in weights.items()}
    both = torch.cat((weights["single"], weights["mix"]))
    unguided = likings(torch.zeros(1, len(PRODUCTS)).double(), _TEST)
    test = TestAnswers(both, likings(both, _TEST) - unguided, PRODUCTS)
    rows: list[dict[str, Any]] = list(result_rows("planted", offers, test, users, args.choices))
    result = {
        "command": arguments.command_line(),
        "rows": rows,
        "seen": seen(offers["single"], users, source),
        "table": table(rows),
    }
    print("seen:", result["seen"])
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
