"""Why a hundred choices between guided answers serve a user no better than ten.

    python -m benchmarks.users.choice_limits --out choice_limits.json

Every prompt is answered under weights on either side of every dimension ("single"), of four random mixes
("mix"), and of the same mixes twice as strong ("strong"), by a real model. Users of two kinds choose between
two answers to a prompt:

rewards   like the mean over tokens of the model's own rewards: the truth is known, and no judge errs
meaning   like what classifiers of meaning score, which no reward was trained on

told      share of such choices that the slope of the liking in the weights tells, read from other prompts
cosines   of the weights fitted to N choices with the best ones (in rewards over candidates), over many draws
taste     the same cosine of the weights that "like the dimensions as they are" means
wins      of the weights over unguided answers on the test prompts, from a linear fit to the wins of all mixes
          and single dimensions there: every answer of every condition counts, not twenty prompts

A choice by weights is fitted as it is ("by weights": v is then the slope of the liking), and with the
differences of the weights times the scalar products of the dimensions' rewards ("by rewards": what these
weights are expected to change in the rewards of an answer, so that v are the weights whose rewards the user
likes).

Intervals are by bootstrap over users.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import arguments
from benchmarks.common.answer_cache import AnswerCache
from benchmarks.common.base_reader import open_reader
from benchmarks.common.prompt_intervals import mean_and_interval
from benchmarks.users.user_tastes import embed_answers
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.choices.candidate_reader import CandidateReader
from pad_vllm.choices.feature_sums import feature_sums
from pad_vllm.choices.logistic_posterior import GaussianPrior, weight_posterior
from pad_vllm.choices.reward_space import RewardSpace
from pad_vllm.evaluation.win_rates_and_fluency import value_and_interval_text
from pad_vllm.steering import dimension_judges
from pad_vllm.steering.comparison_conditions import (
    Condition,
    instructed_conditions,
    instructions_of,
    unguided_condition,
)
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    Conversations,
    DecodingSettings,
    DrawnAnswer,
)
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.training.sampling.sample_responses import read_prompts

OFFERS = {"single": 1.0, "mix": 1.0, "strong": 2.0}
"""Kind of pair -> spread of its rewards in logits."""

DRAWS = 20
"""Of N choices, for each user."""

_MIXES = 4


@dataclass(frozen=True)
class Offer:
    """Answers of one kind: under C weights to P prompts."""

    weights: Tensor
    """[C, D], each followed by its opposite."""

    likings: Tensor
    """[U, C, P] of each user."""

    def random_choices(
        self, kind: str, user: int, count: int, source: np.random.Generator
    ) -> Tensor:
        """[count, D] weights of the chosen answer less those of the other.

        Args:
            kind: of OFFERS: two of the single dimensions in either sign, or a mix and its opposite.
            user: whose choices.
            count: how many; a prompt may come again with another pair.
            source: decides prompts and pairs.
        """
        conditions, prompts = self.likings.shape[1:]
        prompt = source.integers(prompts, size=count)
        first = source.integers(conditions, size=count)
        others = source.integers(1, conditions, size=count)
        second = (first + others) % conditions if kind == "single" else first ^ 1
        better = self.likings[user, first, prompt] >= self.likings[user, second, prompt]
        x = self.weights[first] - self.weights[second]
        return torch.where(better.unsqueeze(-1), x, -x)


def conditions_of(kind: str, space: RewardSpace, beta: float) -> list[Condition]:
    """Weights of one kind on either side, scaled to OFFERS' spread.

    Args:
        kind: of OFFERS.
        space: that has read some answers.
        beta: of all.
    """
    names = space.model.dimensions
    source = torch.Generator().manual_seed(0)
    mixes = torch.randn(_MIXES, len(names), generator=source)
    rows = torch.eye(len(names)) if kind == "single" else mixes
    both = torch.stack((rows, -rows), 1).flatten(0, 1).tolist()
    scaled = [space.scale_to_one_logit(dict(zip(names, row, strict=True))) for row in both]
    return [
        Condition(f"{kind} {n}", {name: OFFERS[kind] * x for name, x in w.items()}, beta)
        for n, w in enumerate(scaled)
    ]


def tastes(dimensions: int) -> Tensor:
    """[U, D]: every dimension for more and for less of it, and every mix of two in all signs, of length 1."""
    rows = [
        [float(s) if d == i else float(t) if d == j else 0.0 for d in range(dimensions)]
        for i, j in itertools.combinations(range(dimensions), 2)
        for s, t in ((1, 1), (1, -1), (-1, 1), (-1, -1))
    ]
    singles = [*torch.eye(dimensions), *-torch.eye(dimensions)]
    every = torch.cat((torch.stack(singles), torch.tensor(rows))).double()
    return every / every.norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Judge:
    """Scores each dimension of an answer, in deviations of the unguided answers."""

    score: Callable[[Conversations, Sequence[DrawnAnswer]], Tensor]
    """-> [P, D]."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def standardised(cls, score: Any, prompts: Conversations, plain: Any) -> Judge:
        """By plain answers to some prompts."""
        values = score(prompts, plain)
        deviation = values.std(0)
        return cls(
            score, values.mean(0), deviation.where(deviation > 0, torch.ones_like(deviation))
        )

    def __call__(self, prompts: Conversations, answers: Sequence[DrawnAnswer]) -> Tensor:
        """[P, D]."""
        return (self.score(prompts, answers) - self.mean) / self.deviation


def reward_scores(reader: CandidateReader) -> Any:
    """Means over tokens of the rewards."""

    def score(prompts: Conversations, answers: Sequence[DrawnAnswer]) -> Tensor:
        pairs = [
            (chat_token_ids(reader.tokenizer, prompt.messages()), list(answer.token_ids))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        lengths = torch.tensor([len(ids) for _, ids in pairs])
        return feature_sums(reader.model, pairs).double() / lengths.unsqueeze(-1)

    return score


def meaning_scores(classifiers: Mapping[str, Any]) -> Any:
    """Log-odds of the classifiers, in the order of the dimensions."""

    def score(_: Conversations, answers: Sequence[DrawnAnswer]) -> Tensor:
        embedded = embed_answers(answers)
        return torch.tensor([list(one(embedded)) for one in classifiers.values()]).double().T

    return score


@dataclass(frozen=True)
class TestAnswers:
    """What the users think of the answers to the test prompts."""

    weights: Tensor
    """[C, D] of single dimensions and mixes, at one logit."""

    likings: Tensor
    """[U, C, P] less those of the unguided answers."""

    gram: Tensor
    """[D, D] of rewards over candidates."""

    def slope(self) -> Tensor:
        """[U, D] by which the liking rises with each weight."""
        liking = self.likings.mean(-1).T
        return torch.linalg.lstsq(self._with_one(self.weights), liking).solution[1:].T

    def best(self) -> Tensor:
        """[U, D] weights under which it rises most, for rewards of a given spread."""
        return self.slope() @ self.gram.inverse()

    def cosine(self, first: Tensor, second: Tensor) -> Tensor:
        """[U] of the rewards that weights [U, D] give; 0 where all weights are 0."""
        first, second = self._at_one_logit(first), self._at_one_logit(second)
        return ((first @ self.gram) * second).sum(-1)

    def wins(self, w: Tensor) -> Tensor:
        """[U] share of unguided answers that answers under w [U, D], scaled to one logit, win against."""
        won = (self.likings > 0).double().mean(-1).T  # [C, U]
        fitted = torch.linalg.lstsq(self._with_one(self.weights), won).solution
        return (self._with_one(self._at_one_logit(w)) * fitted.T).sum(-1)

    def _at_one_logit(self, w: Tensor) -> Tensor:
        """[U, D] scaled to rewards of a spread of one logit. Choices that cancel out leave weights of 0."""
        spread = ((w @ self.gram) * w).sum(-1, keepdim=True).sqrt()
        return w / spread.where(spread > 0, torch.ones_like(spread))

    @staticmethod
    def _with_one(rows: Tensor) -> Tensor:
        return torch.cat((torch.ones(len(rows), 1).double(), rows), -1)


def told(offer: Offer, kind: str, slopes: Tensor) -> list[float]:
    """Share of each user's choices that the slopes [U, D] tell.

    Args:
        offer: answers to prompts that `slopes` knows nothing of.
        kind: of the pairs.
        slopes: by which each user's liking rises with each weight.
    """
    source = np.random.default_rng(1)
    choices = (offer.random_choices(kind, user, 1000, source) for user in range(len(slopes)))
    return [float((x @ v > 0).double().mean()) for x, v in zip(choices, slopes, strict=True)]


def fitted(offer: Offer, kind: str, user: int, count: int, products: Tensor) -> Tensor:
    """[DRAWS, D] weights fitted to so many choices, drawn anew each time.

    Args:
        offer: what is chosen between.
        kind: of the pairs.
        user: whose choices.
        count: how many.
        products: [D, D] that the differences of the weights are multiplied by.
    """
    source = np.random.default_rng(1000 * user + count)
    x = torch.stack([offer.random_choices(kind, user, count, source) for _ in range(DRAWS)])
    x = x @ products
    prior = GaussianPrior.of_unit_weights(x.shape[-1])
    return weight_posterior(x, prior, averaged=True).mean


def result_rows(
    judge: str,
    offers: Mapping[str, Offer],
    test: TestAnswers,
    users: Tensor,
    counts: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """A row a kind of pairs and way to fit.

    Args:
        judge: "rewards" or "meaning".
        offers: kind -> answers to the prompts of the choices.
        test: on other prompts.
        users: [U, D] tastes.
        counts: numbers of choices.
    """
    best, eye = test.best(), torch.eye(users.shape[1]).double()
    singles = [test.wins(row.expand_as(users)) for row in (*eye, *-eye)]
    fixed = {
        "taste": mean_and_interval(test.cosine(users, best).tolist()),
        "wins_taste": mean_and_interval(test.wins(users).tolist()),
        "wins_best": mean_and_interval(test.wins(best).tolist()),
        "wins_single": mean_and_interval(torch.stack(singles).amax(0).tolist()),
    }
    ways = {"weights": eye, "rewards": test.gram / test.gram.diagonal().mean()}
    for (kind, offer), (way, products) in itertools.product(offers.items(), ways.items()):
        row = {"users": judge, "pairs": kind, "fitted": way, "cosines": {}, "wins": {}, **fixed}
        row["told"] = mean_and_interval(told(offer, kind, test.slope()))
        for count in counts:
            each = [fitted(offer, kind, user, count, products) for user in range(len(users))]
            draws = list(torch.stack(each, 1))  # DRAWS times [U, D]
            for name, measure in (("cosines", lambda w: test.cosine(w, best)), ("wins", test.wins)):
                mean = torch.stack([measure(w) for w in draws]).mean(0)
                row[name][str(count)] = mean_and_interval(mean.tolist())
        yield row


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a kind of users and of pairs, for cosines and for wins."""
    counts = list(rows[0]["cosines"])
    heads = [
        "users like",
        "pairs",
        "fitted by",
        "told",
        "",
        *counts,
        "taste",
        "best weights",
        "best single",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in rows:
        fixed = [value_and_interval_text(row["taste"]), "1", ""]
        wins = [value_and_interval_text(row[f"wins_{way}"]) for way in ("taste", "best", "single")]
        for name, more in (("cosines", fixed), ("wins", wins)):
            numbers = [value_and_interval_text(row[name][n]) for n in counts]
            share = value_and_interval_text(row["told"])
            cells = [row["users"], row["pairs"], row["fitted"], share, name, *numbers, *more]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


@dataclass(frozen=True)
class JudgedAnswers:
    """A real model's answers under weights, scored in every dimension by one judge."""

    weights: Mapping[str, Tensor]
    """Kind of OFFERS -> [C, D]."""

    scores: Mapping[str, Tensor]
    """Kind -> [C, P, D]."""

    plain: Tensor
    """[P, D] of the unguided answers."""

    gram: Tensor
    """[D, D] of rewards over candidates."""

    learn: int
    """The first prompts, whose answers are chosen between; the others are won."""

    def offers_and_test(self, users: Tensor) -> tuple[dict[str, Offer], TestAnswers]:
        """Kind -> what users of tastes [U, D] choose between, and what they think of the test's answers."""
        likings = {
            kind: torch.einsum("ud,cpd->ucp", users, scores) for kind, scores in self.scores.items()
        }
        of_plain = (users @ self.plain.T).unsqueeze(1)  # [U, 1, P]
        offers = {
            kind: Offer(self.weights[kind], rows[..., : self.learn])
            for kind, rows in likings.items()
        }
        tested = [kind for kind, spread in OFFERS.items() if spread == 1.0]
        test = TestAnswers(
            torch.cat([self.weights[kind] for kind in tested]),
            torch.cat([(likings[kind] - of_plain)[..., self.learn :] for kind in tested], 1),
            self.gram,
        )
        return offers, test


def make_answers_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with what `judged_answers` reads, and --choices."""
    parser = arguments.make_parser(description)
    arguments.add_prompts_option(parser)
    arguments.add_judge_prompts_option(parser)
    parser.add_argument(
        "--learn",
        type=int,
        default=36,
        help="the first prompts, of the choices; the others are won",
    )
    parser.add_argument("--choices", type=int, nargs="+", default=[5, 10, 20, 30, 100])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--kept", type=Path, help="file of drawn answers (default: beside --out)")
    return parser


def judged_answers(args: argparse.Namespace) -> tuple[dict[str, JudgedAnswers], dict[str, float]]:
    """Draws what is not in the file of answers, and scores it.

    Returns:
        Judge ("meaning", "rewards") -> its scores; dimension -> accuracy of its classifier of meaning.
    """
    folder = resolve_adapter(args.adapter)
    adapter = load_adapter(folder)
    config = adapter.config
    cache = AnswerCache(args.kept or args.out.with_suffix(".answers.jsonl"))
    decoding = DecodingSettings(0.7, args.tokens, config.top_k, dtype="float32")
    prompts = read_prompts(args.prompts)
    instructions = instructions_of(config, None)

    def draw(conditions: list[Condition], to: Conversations) -> list[list[DrawnAnswer]]:
        return cache.draw(AnswerBatch(args.base, folder, to, conditions, [decoding]))[0]

    judge_prompts = read_prompts(args.judge_prompts)
    judges = draw([unguided_condition(), *instructed_conditions(instructions)], judge_prompts)
    classifiers = dimension_judges.meaning_judges_from_answers(instructions, judges)
    reader = open_reader(args.base, adapter)
    space = RewardSpace(reader)
    space.read(judge_prompts[:20], judges[0][:20], {})
    conditions = {kind: conditions_of(kind, space, config.beta) for kind in OFFERS}
    # One batch: an engine's start costs more than its answers.
    plain, *guided = draw(
        [unguided_condition(), *itertools.chain.from_iterable(conditions.values())], prompts
    )
    rest = iter(guided)
    answers = {kind: list(itertools.islice(rest, len(rows))) for kind, rows in conditions.items()}
    weights = {
        kind: torch.tensor([list(c.weights.values()) for c in rows]).double()
        for kind, rows in conditions.items()
    }
    judged = {}
    for name, score in (
        ("meaning", meaning_scores(classifiers)),
        ("rewards", reward_scores(reader)),
    ):
        judge = Judge.standardised(score, prompts, plain)
        scores = {
            kind: torch.stack([judge(prompts, row) for row in rows])
            for kind, rows in answers.items()
        }
        of_plain = judge(prompts, plain)
        judged[name] = JudgedAnswers(
            weights, scores, of_plain, space.gram / space.tokens, args.learn
        )
    return judged, dimension_judges.judge_accuracies(classifiers)


def main() -> None:
    """See the module's docstring."""
    args = make_answers_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    judged, accuracies = judged_answers(args)
    rows: list[dict[str, Any]] = []
    for name, answers in judged.items():
        users = tastes(answers.plain.shape[-1])
        rows += result_rows(name, *answers.offers_and_test(users), users, args.choices)
        print("\n".join(table(rows)), flush=True)
    result = {
        "command": arguments.command_line(),
        "judges": accuracies,
        "rows": rows,
        "table": table(rows),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
