"""Preferences nobody prepared: hidden users served by their choices, or by one sentence, in known dimensions.

    python benchmarks/users.py --learn L --judge-prompts J --steering P --out F.json --picture F

A user's taste is a judge of meaning, which no reward ever saw, or a mix of some; nobody states it.
"left out": the taste of one dimension, with the others to express it in. "mixed": of two or three, with all.

plain N    weights from N choices between two plain answers (`pad-vllm fit`), by the user's taste
guided N   from N choices between answers that were guided by two of the known dimensions, in either sign
sentence   the told base's rewards projected on those of the known dimensions: no choice, no training
nearest    the one known dimension, in the sign, whose rewards go best with the told base's
own        the left out dimension itself, or the mix as it is: what could be reached

All weights are scaled to rewards of one logit's spread over the candidates, and served at the adapter's
strength. Beside the wins stands how far a left out preference lies from the known ones: 1 - the share of the
told base's rewards that they explain together, and the angle to the nearest; the picture has wins against it.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import arguments
import numpy as np
import torch
from candidates import Reader, centred
from jury import share, shown
from matplotlib.figure import Figure
from torch import Tensor

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.evaluation.sentence_embeddings import embed
from pad_vllm.evaluation.text_measures import perplexity, wins_by_prompt
from pad_vllm.steering import comparison_conditions, dimension_judges
from pad_vllm.steering.comparison_conditions import Condition
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    Conversations,
    DecodingSettings,
    DrawnAnswer,
    draw_answers,
    known_losses,
)
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.preference_text import with_instruction
from pad_vllm.training.fit_weights import feature_sums, fit_weights
from pad_vllm.training.sampling.sample_responses import read_prompts

RIDGE = 1e-3  # of the mean of the diagonal


Context = Callable[[list[dict[str, str]]], list[dict[str, str]]]
"""What is made of a conversation."""


@dataclass(frozen=True)
class User:
    """Whom nobody asked."""

    name: str
    taste: dict[str, float]  # dimension -> how much of it
    known: tuple[str, ...]  # dimensions that may express it


class Space:
    """Rewards of the dimensions over the base's candidates, at every token of some plain answers."""

    def __init__(self, reader: Reader) -> None:
        self.model, self.reader, self.tokens = reader.model, reader, 0
        D = len(self.model.dimensions)
        self.gram = torch.zeros(D, D, dtype=torch.float64)  # of phi, under the base
        self.told: dict[
            str, tuple[Tensor, float]
        ] = {}  # phi by the told base's rewards, and their square

    @torch.no_grad()
    def read(
        self, prompts: Conversations, said: Sequence[DrawnAnswer], contexts: Mapping[str, Context]
    ) -> None:
        """contexts: what else the base has read, by a name that `projected` knows it by."""
        for prompt, answer in zip(prompts, said, strict=True):
            seen = self.reader.plain(prompt, answer)
            phi = centred(self.model.features(seen.h, seen.h, seen.ids).double(), seen.p)
            self.tokens += len(phi)
            self.gram += torch.einsum("nk,nki,nkj->ij", seen.p, phi, phi)
            for name, context in contexts.items():
                paid = self.reader.paid(context(prompt.messages()), answer, seen)
                both, square = self.told.get(name, (torch.zeros_like(self.gram[0]), 0.0))
                both = both + torch.einsum("nk,nki,nk->i", seen.p, phi, paid)
                self.told[name] = both, square + float((seen.p * paid**2).sum())

    def places(self, names: Sequence[str]) -> list[int]:
        return [self.model.dimensions.index(name) for name in names]

    def of_one_logit(self, weights: dict[str, float]) -> dict[str, float]:
        w = torch.tensor([weights.get(name, 0.0) for name in self.model.dimensions]).double()
        spread = float((w @ self.gram @ w / self.tokens).sqrt())
        return {name: value / spread for name, value in weights.items()}

    def projected(self, name: str, known: Sequence[str]) -> tuple[dict[str, float], float]:
        """Weights of the known dimensions, and the share of the told base's rewards they explain."""
        rows = self.places(known)
        both, square = self.told[name]
        gram = self.gram[rows][:, rows]
        gram = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(rows)).double()
        w = torch.linalg.solve(gram, both[rows])
        return dict(zip(known, w.tolist(), strict=True)), float(w @ both[rows] / square)

    def nearest(self, name: str, known: Sequence[str]) -> tuple[str, float]:
        """The known dimension, and the cosine of its rewards with the told base's."""
        both, square = self.told[name]
        cosines = both / (self.gram.diagonal() * square).sqrt()
        best = max(self.places(known), key=lambda row: abs(float(cosines[row])))
        return self.model.dimensions[best], float(cosines[best])


def either_sign(space: Space, beta: float) -> list[Condition]:
    """Each dimension alone, for more and for less of it, at one logit's spread."""
    return [
        Condition(f"{sign:+d} {name}", space.of_one_logit({name: sign}), beta)
        for name in space.model.dimensions
        for sign in (1, -1)
    ]


@dataclass(frozen=True)
class Offers:
    """Guided answers to the same prompts."""

    weights: Tensor  # [C, D] of the conditions: each dimension alone, in either sign
    embedded: Sequence[np.ndarray]  # of each condition's answers
    seed: int

    @classmethod
    def of(cls, batch: AnswerBatch, dimensions: Sequence[str]) -> Offers:
        rows = [[one.weights.get(d, 0.0) for d in dimensions] for one in batch.conditions]
        said = draw_answers(batch)[0]
        return cls(torch.tensor(rows), [_embedded(row) for row in said], batch.decodings[0].seed)

    def chosen(self, user: User, tastes: Tastes, places: Sequence[int]) -> Tensor:
        """[N, D] differences of the weights, chosen less other: two answers to each prompt are shown, guided
        by dimensions at `places`.
        """
        known = self.weights[:, places].any(-1).nonzero().flatten().tolist()
        value = np.array([tastes(user, self.embedded[c]) for c in known])  # [known, N]
        source = np.random.default_rng(self.seed)
        prompt = np.arange(value.shape[1])
        one, other = np.array([source.choice(len(known), 2, replace=False) for _ in prompt]).T
        better = torch.from_numpy(value[one, prompt] >= value[other, prompt])
        difference = self.weights[known][one] - self.weights[known][other]
        return torch.where(better.unsqueeze(-1), difference, -difference)


@dataclass(frozen=True)
class Tastes:
    """Standardised judges of meaning."""

    leanings: dict[str, Any]
    scale: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, leanings: dict[str, Any], embedded: np.ndarray) -> Tastes:
        scale = {}
        for name, leaning in leanings.items():
            values = np.array(leaning(embedded))
            scale[name] = float(values.mean()), float(values.std()) or 1.0
        return cls(leanings, scale)

    def __call__(self, user: User, embedded: np.ndarray) -> list[float]:
        total = np.zeros(len(embedded))
        for name, weight in user.taste.items():
            mean, deviation = self.scale[name]
            total += weight * (np.array(self.leanings[name](embedded)) - mean) / deviation
        return total.tolist()


def users(dimensions: Sequence[str], mixed: int, seed: int) -> Iterator[User]:
    for name in dimensions:
        yield User(f"left out: {name}", {name: 1.0}, tuple(d for d in dimensions if d != name))
    source = np.random.default_rng(seed)
    for _ in range(mixed):
        some = source.choice(dimensions, size=int(source.integers(2, 4)), replace=False)
        taste = {str(name): float(source.choice((-1.0, 1.0))) for name in some}
        said = " ".join(f"{'+' if sign > 0 else '-'}{name}" for name, sign in taste.items())
        yield User(f"mixed: {said}", taste, tuple(dimensions))


def ways(
    user: User, space: Space, chosen: Mapping[str, Tensor], counts: Sequence[int]
) -> dict[str, Any]:
    """Way -> weights; chosen: kind of choices -> [N, D] differences, chosen less other."""
    rows = space.places(user.known)
    found: dict[str, dict[str, float]] = {
        f"{kind} {n}": dict(zip(user.known, fit_weights(some[:n, rows]).w.tolist(), strict=True))
        for kind, some in chosen.items()
        for n in counts
    }
    if len(user.taste) == 1:
        (name,) = user.taste
        found["sentence"], _ = space.projected(name, user.known)
        near, cosine = space.nearest(name, user.known)
        found["nearest"] = {near: math.copysign(1.0, cosine)}
    found["own"] = dict(user.taste)
    return found


def distance(user: User, space: Space) -> dict[str, Any]:
    if len(user.taste) > 1:
        return {}
    (name,) = user.taste
    near, cosine = space.nearest(name, user.known)
    explained = space.projected(name, user.known)[1]
    angle = math.degrees(math.acos(min(abs(cosine), 1.0)))
    return {"nearest": near, "angle": round(angle, 1), "unexplained": round(1 - explained, 3)}


def parse() -> argparse.Namespace:
    parser = arguments.parser(__doc__)
    parser.add_argument("--learn", type=Path, required=True, help="prompts of the choices")
    parser.add_argument("--judge-prompts", type=Path, required=True)
    parser.add_argument("--steering", type=Path, required=True, help="prompts that are answered")
    parser.add_argument("--choices", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--read", type=int, default=30, help="plain answers the space is read from")
    parser.add_argument("--mixed", type=int, default=6, help="users whose taste is a mix")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--picture", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse()
    learn = read_prompts(args.learn)
    if (most := max(args.choices)) > len(learn):
        raise SystemExit(
            f"--choices {most}: {args.learn} has {len(learn)} prompts; accepted: at most as many"
        )
    folder = resolve_adapter(args.adapter)
    adapter = load_adapter(folder)
    if not adapter.config.heads_only:
        raise SystemExit(f"--adapter {folder}: heads alone are accepted")
    drawn = DecodingSettings(args.temperature, args.tokens, adapter.config.top_k, dtype="float32")
    sentences = comparison_conditions.instructions_of(adapter.config)
    leanings = dimension_judges.fit_meaning_judges(
        args.base, sentences, read_prompts(args.judge_prompts), drawn
    )
    one, other = (
        row[0]
        for row in draw_answers(
            AnswerBatch(
                args.base, None, learn, [comparison_conditions.unguided_condition()], [drawn] * 2
            )
        )
    )
    reader = Reader.of(args.base, adapter)
    space = Space(reader)
    told = {name: partial(with_instruction, text=sentence) for name, sentence in sentences.items()}
    space.read(learn[: args.read], one[: args.read], told)
    differences = _sums(reader, learn, one) - _sums(reader, learn, other)
    embedded = [_embedded(one), _embedded(other)]
    tastes = Tastes.of(leanings, np.concatenate(embedded))
    offered = either_sign(space, adapter.config.beta)
    offers = Offers.of(
        AnswerBatch(args.base, folder, learn[:most], offered, [drawn]), space.model.dimensions
    )
    hidden = list(users(tuple(sentences), args.mixed, drawn.seed))
    rows = []
    for user in hidden:
        chosen = {
            "plain": _chosen(user, tastes, differences, embedded),
            "guided": offers.chosen(user, tastes, space.places(user.known)),
        }
        far = distance(user, space)
        rows += [
            {"user": user.name, "way": way, "weights": space.of_one_logit(w), **far}
            for way, w in ways(user, space, chosen, args.choices).items()
        ]
    asked = [
        Condition(f"{row['user']}, {row['way']}", row["weights"], adapter.config.beta)
        for row in rows
    ]
    prompts = read_prompts(args.steering)
    batch = AnswerBatch(
        args.base, folder, prompts, [comparison_conditions.unguided_condition(), *asked], [drawn]
    )
    said = draw_answers(batch)[0]
    judge(rows, hidden, tastes, *said)
    everyone = summary(rows)
    result = {
        "command": arguments.command(),
        "judges": dimension_judges.judge_accuracies(leanings),
        "all": everyone,
        "rows": rows,
        "texts": texts(asked, said),
        "table": table([*everyone, *(row for row in rows if "nearest" in row)]),
    }
    arguments.tell(args, result, partial(draw, rows))


def judge(
    rows: Sequence[dict[str, Any]],
    hidden: Sequence[User],
    tastes: Tastes,
    plain: Sequence[DrawnAnswer],
    *guided: Sequence[DrawnAnswer],
) -> None:
    """Puts into each row what the user's own taste says of its answers, beside the unguided ones."""
    by_name = {user.name: user for user in hidden}
    before, base = _embedded(plain), perplexity(known_losses(plain))
    for row, said in zip(rows, guided, strict=True):
        user = by_name[row["user"]]
        won = wins_by_prompt(tastes(user, _embedded(said)), tastes(user, before))
        row["wins"], row["by_prompt"] = share(won), won
        row["perplexity"] = round(perplexity(known_losses(said)) / base, 3)


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line a kind of user and way; a prompt's answers to several users are not apart."""
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        kinds.setdefault((row["user"].split(":")[0], row["way"]), []).append(row)
    return [
        {
            "user": f"{kind}, all {len(some)}",
            "way": way,
            "wins": share(
                [statistics.mean(won) for won in zip(*(r["by_prompt"] for r in some), strict=True)]
            ),
            "perplexity": round(statistics.mean(r["perplexity"] for r in some), 3),
        }
        for (kind, way), some in kinds.items()
    ]


def texts(
    asked: Sequence[Condition], said: Sequence[Sequence[DrawnAnswer]]
) -> dict[str, list[str]]:
    """What was said, the unguided answers first."""
    names = ["unguided", *(one.name for one in asked)]
    return {n: [a.text for a in row] for n, row in zip(names, said, strict=True)}


def _chosen(
    user: User, tastes: Tastes, differences: Tensor, embedded: Sequence[np.ndarray]
) -> Tensor:
    """differences [N, D] of Psi between two answers, turned so that the user prefers the first."""
    better = np.sign(np.subtract(*(tastes(user, part) for part in embedded)))
    return differences * torch.tensor(better).unsqueeze(-1)


def _embedded(said: Sequence[DrawnAnswer]) -> np.ndarray:
    return embed([answer.text for answer in said])


def _sums(reader: Reader, prompts: Conversations, said: Sequence[DrawnAnswer]) -> Tensor:
    pairs = [
        (chat_token_ids(reader.tokenizer, prompt.messages()), list(answer.token_ids))
        for prompt, answer in zip(prompts, said, strict=True)
    ]
    return feature_sums(reader.model, pairs)


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| user | way | wins by the user's own taste | perplexity | nearest, degrees | unexplained |",
        "| --- | --- | --- | ---: | --- | ---: |",
    ]
    for row in rows:
        near = f"{row['nearest']}, {row['angle']:.0f}" if "nearest" in row else ""
        apart = f"{row['unexplained']:.0%}" if "nearest" in row else ""
        lines.append(
            f"| {row['user']} | {row['way']} | {shown(row['wins'])} | "
            f"{row['perplexity']:.2f}x | {near} | {apart} |"
        )
    return lines


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Wins of the left out users against how far they lie from what is known, a line a way."""
    some = sorted((r for r in rows if "unexplained" in r), key=lambda r: r["unexplained"])
    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for way in dict.fromkeys(r["way"] for r in some):
        own = [r for r in some if r["way"] == way]
        x, y = [100 * r["unexplained"] for r in own], [100 * r["wins"][0] for r in own]
        axes.plot(x, y, "o-", markersize=4, label=way)
    places = {r["user"].split(": ")[-1]: 100 * r["unexplained"] for r in some}
    axes.set_xticks(list(places.values()), [f"{n} {x:.0f}%" for n, x in places.items()])
    axes.tick_params("x", rotation=40)
    axes.axhline(50, color="0.7", linewidth=1)
    axes.set_xlabel("what the other dimensions do not explain of the told base's rewards")
    axes.set_ylabel("wins by the user's own taste, %")
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path)


if __name__ == "__main__":
    main()
