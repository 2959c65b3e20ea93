"""Implicit preferences: users who state none, and whose earlier answers were to their taste.

    python -m benchmarks.users.implicit_preferences --prompts P --judge-prompts J --out history.json

A dialogue of --turns earlier questions, answered by the base with the user's instructions in its prompt; the
requests measured here do not contain these instructions. Four ways to answer the next question:

history   the base, the dialogue kept in the prompt
read      PAD: the rewards that the dialogue in the prompt gives to the candidates of some plain answers,
          projected on the dimensions' rewards; no later request contains the dialogue
said      PAD: one step towards the weights under which the dialogue's own answers are likely
oracle    PAD with the user's taste as weights

All weights are scaled to rewards of one logit's spread, and served at the adapter's strength. `agrees` is the
cosine of the rewards with the oracle's, `prompt` how many tokens a request has more than the question. The
taste is judged by classifiers of meaning, which no reward was trained on.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.common import arguments
from benchmarks.common.answer_experiment import AnswerExperiment
from benchmarks.common.base_reader import open_reader
from benchmarks.common.independent_judges import (
    mean_by_prompt,
    percent_with_interval,
    win_rate_and_interval,
)
from benchmarks.users.user_dialogues import (
    Dialogue,
    added_tokens,
    dialogue_messages,
    draw_behind_dialogues,
    draw_dialogues,
)
from benchmarks.users.user_tastes import SimulatedUser, TasteScores, embed_answers
from pad_vllm.choices.candidate_reader import subtract_candidate_mean
from pad_vllm.choices.reward_space import RewardSpace
from pad_vllm.evaluation.win_rates_and_fluency import perplexity, wins_by_prompt
from pad_vllm.steering.comparison_conditions import Condition, unguided_condition
from pad_vllm.steering.dimension_judges import DimensionJudges
from pad_vllm.steering.guided_answers import DrawnAnswer, known_losses

HISTORY, FROM_REWARDS, FROM_ANSWERS, ORACLE = "history", "read", "said", "oracle"
WAYS = {
    HISTORY: "history in the prompt",
    FROM_REWARDS: FROM_REWARDS,
    FROM_ANSWERS: FROM_ANSWERS,
    ORACLE: ORACLE,
}
"""Way to answer -> its label."""

Weights = dict[str, float]
"""Dimension -> weight."""


def make_users(dimensions: Sequence[str], mixed: int) -> list[SimulatedUser]:
    """A user a dimension, and `mixed` users who like two."""
    pairs = list(itertools.combinations(dimensions, 2))[:mixed]
    tastes = [(name,) for name in dimensions] + pairs
    return [
        SimulatedUser(" and ".join(taste), dict.fromkeys(taste, 1.0), tuple(dimensions))
        for taste in tastes
    ]


def likelihood_slope(space: RewardSpace, dialogue: Dialogue) -> torch.Tensor:
    """[D] float64 slope of the log-likelihood of the dialogue's answers in w, at w = 0: phi of the answers'
    tokens less its mean over the candidates.
    """
    slope = torch.zeros(len(space.model.dimensions), dtype=torch.float64)
    for prompt, answer in dialogue:
        candidates = space.reader.candidates(prompt, answer)
        with torch.no_grad():
            phi = space.model.features(candidates.h, candidates.h, candidates.ids).double()
            phi = subtract_candidate_mean(phi, candidates.p)
        # A token that is no candidate adds nothing: its likelihood among them is not known.
        generated = candidates.ids == torch.tensor(answer.token_ids)[:, None]
        slope += phi[generated].sum(0)
    return slope


def weights_by_way(
    space: RewardSpace, user: SimulatedUser, dialogue: Dialogue
) -> dict[str, Weights]:
    """Weights of each way that guides.

    Args:
        space: That has read plain answers, with the user's dialogue under the user's name.
        user: The simulated user.
        dialogue: Of the user.
    """
    space.prompt_products[FROM_ANSWERS] = likelihood_slope(space, dialogue), 1.0
    by_way = {
        FROM_REWARDS: space.project(user.name, user.usable_dimensions)[0],
        FROM_ANSWERS: space.project(FROM_ANSWERS, user.usable_dimensions)[0],
        ORACLE: user.taste,
    }
    scaled = {way: space.scale_to_one_logit(w) for way, w in by_way.items()}
    # Rounded, so that the batch has the same hash when it is asked for again.
    return {way: {name: round(x, 4) for name, x in w.items()} for way, w in scaled.items()}


def cosine(
    space: RewardSpace, weights: Mapping[str, float], other_weights: Mapping[str, float]
) -> float:
    """Cosine of the rewards under two sets of weights.

    Args:
        space: With the products of the dimensions' rewards.
        weights: By dimension.
        other_weights: By dimension.
    """
    a, b = (
        torch.tensor([w.get(name, 0.0) for name in space.model.dimensions]).double()
        for w in (weights, other_weights)
    )
    product = a @ space.gram @ b
    return round(float(product / (a @ space.gram @ a * (b @ space.gram @ b)).sqrt()), 3)


def draw_all_ways(
    experiment: AnswerExperiment,
    users: Sequence[SimulatedUser],
    dialogues: Mapping[str, Dialogue],
    weights: Mapping[tuple[str, str], Weights],
) -> tuple[list[DrawnAnswer], dict[tuple[str, str], list[DrawnAnswer]]]:
    """Answers to the experiment's prompts.

    Args:
        experiment: Its base, adapter and prompts.
        users: The simulated users.
        dialogues: By user.
        weights: By (user, way that guides).

    Returns:
        The unguided answers, and the others by (user, way).
    """
    beta = experiment.config.beta
    conditions = [Condition(" ".join(key), w, beta) for key, w in weights.items()]
    unguided, *guided = experiment.draw([unguided_condition(), *conditions])
    answers = dict(zip(weights, guided, strict=True))
    behind = draw_behind_dialogues(experiment, users, dialogues)
    answers |= {(user.name, HISTORY): row for user, row in zip(users, behind, strict=True)}
    return unguided, answers


def result_rows(
    experiment: AnswerExperiment,
    space: RewardSpace,
    users: Sequence[SimulatedUser],
    dialogues: Mapping[str, Dialogue],
    weights: Mapping[tuple[str, str], Weights],
) -> list[dict[str, Any]]:
    """Draw and judge every way of answering: a row a user and way.

    Args:
        experiment: Its base, adapter, prompts and judges.
        space: With the products of the dimensions' rewards.
        users: The simulated users.
        dialogues: By user.
        weights: By (user, way that guides).
    """
    unguided, answers = draw_all_ways(experiment, users, dialogues, weights)
    scores = TasteScores.standardised(
        experiment.judges.judges.classifiers, embed_answers(experiment.unguided_judge_answers)
    )
    base_judges = DimensionJudges(space.model.backbone, space.reader.tokenizer, {})
    unguided_embedded = embed_answers(unguided)
    unguided_perplexity = perplexity(known_losses(unguided))
    rows = []
    for user, way in itertools.product(users, WAYS):
        of_way, w = answers[user.name, way], weights.get((user.name, way), {})
        wins = wins_by_prompt(scores(user, embed_answers(of_way)), scores(user, unguided_embedded))
        # Of the plain prompts: guided answers have these losses, answers behind a dialogue have none.
        losses = base_judges.losses(experiment.prompts, of_way, "")
        added = added_tokens(space.reader.tokenizer, dialogues[user.name], experiment.prompts)
        rows.append(
            {
                "user": user.name,
                "way": way,
                "weights": {name: round(value, 3) for name, value in w.items()},
                "wins": win_rate_and_interval(wins),
                "won": wins,
                "perplexity": round(perplexity(losses) / unguided_perplexity, 3),
                "agrees": cosine(space, w, user.taste) if w else 0.0,
                "prompt": 0 if w else added,
            }
        )
    return rows


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a way, over the users."""
    summary = []
    for way in WAYS:
        of_way = [r for r in rows if r["way"] == way]
        wins = win_rate_and_interval(mean_by_prompt([r["won"] for r in of_way]))
        means = {
            name: round(statistics.mean(r[name] for r in of_way), 3)
            for name in ("perplexity", "agrees", "prompt")
        }
        summary.append({"user": "all", "way": way, "wins": wins, **means})
    return summary


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a user and way."""
    lines = [
        "| user | way | wins by the user's own taste | perplexity | agrees | prompt |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for r in rows:
        wins, cost = percent_with_interval(r["wins"]), f"{r['perplexity']:.2f}x"
        agrees = "" if r["way"] == HISTORY else f"{r['agrees']:.2f}"
        cells = [r["user"], WAYS[r["way"]], wins, cost, agrees]
        lines.append(f"| {' | '.join(cells)} | {r['prompt']:+.0f} |")
    return lines


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A group of bars a user."""
    names = list(dict.fromkeys(r["user"] for r in rows))
    figure = Figure(figsize=(1.5 * len(names) + 1, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for index, way in enumerate(WAYS):
        wins = {r["user"]: r["wins"] for r in rows if r["way"] == way}
        x = np.arange(len(names)) + 0.2 * (index - 1.5)
        mean, low, high = (np.array([100 * wins[name][i] for name in names]) for i in range(3))
        error = [mean - low, high - mean]
        axes.bar(x, mean, 0.18, yerr=error, label=WAYS[way], error_kw={"lw": 0.8})
    axes.axhline(50, color="0.5", linewidth=0.8)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("wins by the user's own taste, %")
    axes.legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__)
    arguments.add_judging_options(parser, tokens=48)
    parser.add_argument("--turns", type=int, default=4, help="of the dialogue")
    parser.add_argument("--read", type=int, default=6, help="plain answers that w is read from")
    parser.add_argument("--mixed", type=int, default=2, help="users who like two dimensions")
    args = parser.parse_args()
    experiment = AnswerExperiment.from_arguments(args)
    experiment.require_heads_only()
    for name in experiment.dimensions:
        if name not in experiment.judges.judges.classifiers:
            raise SystemExit(
                f"{name}: dimensions that an instruction trained are accepted (--dimensions)"
            )
    users = make_users(experiment.dimensions, args.mixed)
    dialogues = draw_dialogues(experiment, users, args.turns)
    space = RewardSpace(open_reader(experiment.base, experiment.adapter))
    to_read = slice(args.turns, args.turns + args.read)  # not those of the dialogues
    behind_dialogue = {
        name: lambda messages, dialogue=dialogue: [*dialogue_messages(dialogue), *messages]
        for name, dialogue in dialogues.items()
    }
    prompts, answers = experiment.judge_prompts, experiment.unguided_judge_answers
    space.read(prompts[to_read], answers[to_read], behind_dialogue)
    weights = {
        (user.name, way): w
        for user in users
        for way, w in weights_by_way(space, user, dialogues[user.name]).items()
    }
    rows = result_rows(experiment, space, users, dialogues, weights)
    summary = summarize(rows)
    texts = {name: dialogue_messages(dialogue) for name, dialogue in dialogues.items()}
    result = {"all": summary, "rows": rows, "dialogues": texts, "table": table([*summary, *rows])}
    result |= {**experiment.result_entries(), "turns": args.turns}
    arguments.print_and_write(args, result, partial(draw, [*summary, *rows]))


if __name__ == "__main__":
    main()
