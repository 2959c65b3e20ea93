"""Preferences that no dimension was made for: users served by their choices, or by one instruction.

    python -m benchmarks.users.hidden_users --learn L --judge-prompts J --prompts P --out F.json --picture F

A user's taste is a classifier of meaning, which no reward was trained on, or a mix of some; nobody states it.
"left out": the taste is one dimension, and only the others are usable. "mixed": two or three dimensions, and
all are usable.

plain N    weights from N choices between two plain answers (`pad-vllm fit`), by the user's taste
guided N   from N choices between answers that were guided by two of the usable dimensions, in either sign
sentence   the rewards of the left out dimension's instruction projected on those of the usable dimensions: no
           choice, no training
nearest    the one usable dimension, in the sign, whose rewards go best with the instruction's
own        the left out dimension itself, or the mix as it is: what could be reached

All weights are scaled to rewards of one logit's spread over the candidates, and served at the adapter's
strength. Beside the wins stands how far a left out dimension lies from the usable ones: 1 - the share of its
instruction's rewards that they explain together, and the angle to the nearest; the picture has wins against
that share.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.common import arguments
from benchmarks.common.base_reader import open_reader
from benchmarks.common.independent_judges import (
    mean_by_prompt,
    percent_with_interval,
    win_rate_and_interval,
)
from benchmarks.users.simulated_choices import GuidedChoices, PlainChoices
from benchmarks.users.user_tastes import SimulatedUser, TasteScores, embed_answers
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.choices.fit_weights import fit_weights
from pad_vllm.choices.reward_space import RewardSpace
from pad_vllm.evaluation.win_rates_and_fluency import perplexity, wins_by_prompt
from pad_vllm.steering import dimension_judges
from pad_vllm.steering.comparison_conditions import Condition, instructions_of, unguided_condition
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    Conversations,
    DecodingSettings,
    DrawnAnswer,
    draw_answers,
    known_losses,
)
from pad_vllm.text.preference_text import with_instruction
from pad_vllm.training.sampling.sample_responses import read_prompts

Weights = dict[str, float]
"""Dimension -> weight."""


def make_users(dimensions: Sequence[str], mixed: int, seed: int) -> Iterator[SimulatedUser]:
    """A left out user a dimension, and mixed ones.

    Args:
        dimensions: That have an instruction.
        mixed: Users who like two or three dimensions, for more or for less of them.
        seed: Of the mixes.
    """
    for name in dimensions:
        others = tuple(d for d in dimensions if d != name)
        yield SimulatedUser(f"left out: {name}", {name: 1.0}, others)
    source = np.random.default_rng(seed)
    for _ in range(mixed):
        names = source.choice(dimensions, size=int(source.integers(2, 4)), replace=False)
        taste = {str(name): float(source.choice((-1.0, 1.0))) for name in names}
        label = " ".join(f"{'+' if sign > 0 else '-'}{name}" for name, sign in taste.items())
        yield SimulatedUser(f"mixed: {label}", taste, tuple(dimensions))


def either_sign_conditions(space: RewardSpace, beta: float) -> list[Condition]:
    """Each dimension alone, for more and for less of it, at one logit's spread."""
    return [
        Condition(f"{sign:+d} {name}", space.scale_to_one_logit({name: sign}), beta)
        for name in space.model.dimensions
        for sign in (1, -1)
    ]


def weights_by_way(
    user: SimulatedUser,
    space: RewardSpace,
    differences: Mapping[str, Tensor],
    counts: Sequence[int],
) -> dict[str, Weights]:
    """Way to serve a user -> weights.

    Args:
        user: The simulated user.
        space: That has read the dimensions' instructions.
        differences: Kind of choices -> [N, D], chosen less other.
        counts: How many choices are used.
    """
    names = user.usable_dimensions
    indices = space.indices(names)
    weights: dict[str, Weights] = {
        f"{kind} {n}": dict(zip(names, fit_weights(rows[:n, indices]).w.tolist(), strict=True))
        for kind, rows in differences.items()
        for n in counts
    }
    if len(user.taste) == 1:
        (name,) = user.taste
        weights["sentence"], _ = space.project(name, names)
        near, cosine = space.nearest(name, names)
        weights["nearest"] = {near: math.copysign(1.0, cosine)}
    weights["own"] = dict(user.taste)
    return weights


def distance_to_usable(user: SimulatedUser, space: RewardSpace) -> dict[str, Any]:
    """How far a left out dimension lies from the usable ones; nothing for a mixed user."""
    if len(user.taste) > 1:
        return {}
    (name,) = user.taste
    near, cosine = space.nearest(name, user.usable_dimensions)
    explained = space.project(name, user.usable_dimensions)[1]
    angle = math.degrees(math.acos(min(abs(cosine), 1.0)))
    return {"nearest": near, "angle": round(angle, 1), "unexplained": round(1 - explained, 3)}


def add_judgements(
    rows: Sequence[dict[str, Any]],
    users: Sequence[SimulatedUser],
    scores: TasteScores,
    unguided: Sequence[DrawnAnswer],
    guided: Sequence[Sequence[DrawnAnswer]],
) -> None:
    """Add to each row wins by the user's own taste over the unguided answers, and perplexity.

    Args:
        rows: One a user and way.
        users: The simulated users.
        scores: How much users like an answer.
        unguided: The base's answers.
        guided: Of each row.
    """
    by_name = {user.name: user for user in users}
    unguided_embedded = embed_answers(unguided)
    unguided_perplexity = perplexity(known_losses(unguided))
    for row, answers in zip(rows, guided, strict=True):
        user = by_name[row["user"]]
        liking = scores(user, embed_answers(answers))
        wins = wins_by_prompt(liking, scores(user, unguided_embedded))
        row["wins"], row["by_prompt"] = win_rate_and_interval(wins), wins
        row["perplexity"] = round(perplexity(known_losses(answers)) / unguided_perplexity, 3)


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a kind of user and way."""
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        kinds.setdefault((row["user"].split(":")[0], row["way"]), []).append(row)
    return [
        {
            "user": f"{kind}, all {len(of_kind)}",
            "way": way,
            "wins": win_rate_and_interval(mean_by_prompt([r["by_prompt"] for r in of_kind])),
            "perplexity": round(statistics.mean(r["perplexity"] for r in of_kind), 3),
        }
        for (kind, way), of_kind in kinds.items()
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a user and way."""
    lines = [
        "| user | way | wins by the user's own taste | perplexity | nearest, degrees | unexplained |",
        "| --- | --- | --- | ---: | --- | ---: |",
    ]
    for row in rows:
        near = f"{row['nearest']}, {row['angle']:.0f}" if "nearest" in row else ""
        unexplained = f"{row['unexplained']:.0%}" if "nearest" in row else ""
        wins, cost = percent_with_interval(row["wins"]), f"{row['perplexity']:.2f}x"
        cells = [row["user"], row["way"], wins, cost, near, unexplained]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Wins of the left out users against how far they lie from the usable dimensions, a line a way."""
    left_out = sorted((r for r in rows if "unexplained" in r), key=lambda r: r["unexplained"])
    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for way in dict.fromkeys(r["way"] for r in left_out):
        line = [r for r in left_out if r["way"] == way]
        x, y = [100 * r["unexplained"] for r in line], [100 * r["wins"][0] for r in line]
        axes.plot(x, y, "o-", markersize=4, label=way)
    ticks = {r["user"].split(": ")[-1]: 100 * r["unexplained"] for r in left_out}
    axes.set_xticks(list(ticks.values()), [f"{n} {x:.0f}%" for n, x in ticks.items()])
    axes.tick_params("x", rotation=40)
    axes.axhline(50, color="0.7", linewidth=1)
    axes.set_xlabel("what the other dimensions do not explain of the instructed base's rewards")
    axes.set_ylabel("wins by the user's own taste, %")
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(__doc__)
    parser.add_argument("--learn", type=Path, required=True, help="prompts of the choices")
    parser.add_argument("--judge-prompts", type=Path, required=True)
    arguments.add_prompts_option(parser)
    parser.add_argument("--choices", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--read", type=int, default=30, help="plain answers the space is read from")
    parser.add_argument("--mixed", type=int, default=6, help="users whose taste is a mix")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--picture", type=Path)
    return parser.parse_args()


def draw_twice(
    args: argparse.Namespace, prompts: Conversations, decoding: DecodingSettings
) -> tuple[list[DrawnAnswer], list[DrawnAnswer]]:
    """Two plain answers of the base to each prompt.

    Args:
        args: With --base.
        prompts: Of the answers.
        decoding: How both are drawn, one after the other.
    """
    batch = AnswerBatch(args.base, None, prompts, [unguided_condition()], [decoding] * 2)
    (first,), (second,) = draw_answers(batch)
    return first, second


def user_rows(
    users: Sequence[SimulatedUser],
    space: RewardSpace,
    scores: TasteScores,
    choices: tuple[PlainChoices, GuidedChoices],
    counts: Sequence[int],
) -> list[dict[str, Any]]:
    """A row a user and way, with its weights.

    Args:
        users: The simulated users.
        space: That has read the dimensions' instructions.
        scores: How much users like an answer.
        choices: Between plain answers, and between guided ones.
        counts: How many choices are used.
    """
    plain, guided = choices
    rows = []
    for user in users:
        indices = space.indices(user.usable_dimensions)
        differences = {
            "plain": plain.chosen_less_other(user, scores),
            "guided": guided.chosen_less_other(user, scores, indices),
        }
        distance = distance_to_usable(user, space)
        rows += [
            {"user": user.name, "way": way, "weights": space.scale_to_one_logit(w), **distance}
            for way, w in weights_by_way(user, space, differences, counts).items()
        ]
    return rows


def main() -> None:
    """See the module's docstring."""
    args = parse()
    learn = read_prompts(args.learn)
    if (most := max(args.choices)) > len(learn):
        raise SystemExit(
            f"--choices {most}: {args.learn} has {len(learn)} prompts; accepted: at most as many"
        )
    folder = resolve_adapter(args.adapter)
    adapter = load_adapter(folder)
    config = adapter.config
    if not config.heads_only:
        raise SystemExit(f"--adapter {folder}: heads only are accepted")
    decoding = DecodingSettings(args.temperature, args.tokens, config.top_k, dtype="float32")
    instructions = instructions_of(config)
    classifiers = dimension_judges.fit_meaning_judges(
        args.base, instructions, read_prompts(args.judge_prompts), decoding
    )
    first, second = draw_twice(args, learn, decoding)
    reader = open_reader(args.base, adapter)
    space = RewardSpace(reader)
    instructed = {n: partial(with_instruction, text=text) for n, text in instructions.items()}
    space.read(learn[: args.read], first[: args.read], instructed)
    plain_choices = PlainChoices.from_answers(reader, learn, (first, second))
    scores = TasteScores.standardised(classifiers, np.concatenate(plain_choices.embedded))
    shown = either_sign_conditions(space, config.beta)
    guided_choices = GuidedChoices.draw(
        AnswerBatch(args.base, folder, learn[:most], shown, [decoding]), space.model.dimensions
    )
    users = list(make_users(tuple(instructions), args.mixed, decoding.seed))
    rows = user_rows(users, space, scores, (plain_choices, guided_choices), args.choices)
    guided = [Condition(f"{r['user']}, {r['way']}", r["weights"], config.beta) for r in rows]
    conditions = [unguided_condition(), *guided]
    prompts = read_prompts(args.prompts)
    (answers,) = draw_answers(AnswerBatch(args.base, folder, prompts, conditions, [decoding]))
    add_judgements(rows, users, scores, answers[0], answers[1:])
    summary = summarize(rows)
    texts = {c.name: [a.text for a in row] for c, row in zip(conditions, answers, strict=True)}
    result = {
        "command": arguments.command_line(),
        "judges": dimension_judges.judge_accuracies(classifiers),
        "all": summary,
        "rows": rows,
        "texts": texts,
        "table": table([*summary, *(row for row in rows if "nearest" in row)]),
    }
    arguments.print_and_write(args, result, partial(draw, rows))


if __name__ == "__main__":
    main()
