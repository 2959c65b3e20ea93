"""Implicit preferences: users who never say what they want, and whose earlier answers were to their taste.

    python benchmarks/history.py --steering koala.jsonl --judge-prompts J --out history.json

A dialogue of --turns earlier questions, with answers that the base was told the user's sentences for; nothing
of that is said again. Who answers the next question to the user's taste?

history   the base, the dialogue kept in the prompt
read      PAD: what the base that has read the dialogue pays to the candidates of some plain answers, more
          than the base that has not, projected on the dimensions' rewards; no request has it any more
said      PAD: one step towards the weights under which the dialogue's own answers are likely
oracle    PAD with the taste as it is

All weights are scaled to rewards of one logit's spread, and served at the adapter's strength. `agrees` is the
cosine of the rewards with the oracle's, `prompt` how many tokens a request has more than the question. The
taste is judges of meaning, which no reward ever saw.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import arguments
import dialogue
import numpy as np
import torch
from candidates import Reader, centred
from dialogue import Dialogue
from jury import share, shown
from matplotlib.figure import Figure
from setting import Setting
from users import Space, Tastes, User

from pad_vllm.evaluation.sentence_embeddings import embed
from pad_vllm.evaluation.text_measures import perplexity, wins_by_prompt
from pad_vllm.steering import comparison_conditions
from pad_vllm.steering.comparison_conditions import Condition
from pad_vllm.steering.dimension_judges import DimensionJudges
from pad_vllm.steering.guided_answers import known_losses

HISTORY, READ, SAID, ORACLE = "history", "read", "said", "oracle"
WAYS = {HISTORY: "history in the prompt", READ: READ, SAID: SAID, ORACLE: ORACLE}


def hidden(dimensions: Sequence[str], mixed: int) -> list[User]:
    """A user a dimension, and `mixed` who like two."""
    pairs = list(itertools.combinations(dimensions, 2))[:mixed]
    tastes = [(name,) for name in dimensions] + pairs
    return [User(" and ".join(t), dict.fromkeys(t, 1.0), tuple(dimensions)) for t in tastes]


def likelihood(space: Space, known: Dialogue) -> torch.Tensor:
    """[D] slope of the log-likelihood of the answers in w, at none: phi of what was said, less its mean."""
    slope = torch.zeros(len(space.model.dimensions), dtype=torch.float64)
    for prompt, answer in known:
        seen = space.reader.plain(prompt, answer)
        with torch.no_grad():
            phi = centred(space.model.features(seen.h, seen.h, seen.ids).double(), seen.p)
        # A token beyond the candidates says nothing of them.
        taken = seen.ids == torch.tensor(answer.token_ids)[:, None]
        slope += phi[taken].sum(0)
    return slope


def weights(space: Space, user: User, known: Dialogue) -> dict[str, dict[str, float]]:
    """Way -> weights. space: that has read the user's dialogue, by their name."""
    space.told[SAID] = likelihood(space, known), 1.0
    found = {
        READ: space.projected(user.name, user.known)[0],
        SAID: space.projected(SAID, user.known)[0],
    }
    scaled = {way: space.of_one_logit(w) for way, w in {**found, ORACLE: user.taste}.items()}
    # Rounded, so that the question is the same when it is asked again.
    return {way: {name: round(x, 4) for name, x in w.items()} for way, w in scaled.items()}


def agreement(space: Space, one: Mapping[str, float], two: Mapping[str, float]) -> float:
    """Cosine of the rewards."""
    a, b = (
        torch.tensor([w.get(name, 0.0) for name in space.model.dimensions]).double()
        for w in (one, two)
    )
    return round(float(a @ space.gram @ b / (a @ space.gram @ a * (b @ space.gram @ b)).sqrt()), 3)


def rows(
    setting: Setting,
    space: Space,
    users: Sequence[User],
    known: Mapping[str, Dialogue],
    found: Mapping[tuple[str, str], dict[str, float]],
) -> list[dict[str, Any]]:
    """One a user and way. found: (user, way) -> weights."""
    asked = [Condition(" ".join(key), w, setting.config.beta) for key, w in found.items()]
    plain, *guided = setting.answers([comparison_conditions.unguided_condition(), *asked])
    said = dict(zip(found, guided, strict=True))
    kept = dialogue.behind(setting, users, known)
    said |= {(user.name, HISTORY): row for user, row in zip(users, kept, strict=True)}
    tastes = Tastes.of(setting.jury.judge.classifiers, embed([one.text for one in setting.plain]))
    judge = DimensionJudges(space.model.backbone, space.reader.tokenizer, {})
    before, base = embed([one.text for one in plain]), perplexity(known_losses(plain))
    made = []
    for user, way in itertools.product(users, WAYS):
        answers, w = said[user.name, way], found.get((user.name, way), {})
        won = wins_by_prompt(
            tastes(user, embed([one.text for one in answers])), tastes(user, before)
        )
        loss = judge.losses(setting.prompts, answers, "" if w else HISTORY)
        more = dialogue.length(space.reader.tokenizer, known[user.name], setting.prompts)
        made.append(
            {
                "user": user.name,
                "way": way,
                "weights": {name: round(value, 3) for name, value in w.items()},
                "wins": share(won),
                "won": won,
                "perplexity": round(perplexity(loss) / base, 3),
                "agrees": agreement(space, w, user.taste) if w else 0.0,
                "prompt": 0 if w else more,
            }
        )
    return made


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line a way, over the users; a prompt's answers to all of them are not apart."""
    found = []
    for way in WAYS:
        some = [r for r in rows if r["way"] == way]
        won = [statistics.mean(column) for column in zip(*(r["won"] for r in some), strict=True)]
        means = {
            name: round(statistics.mean(r[name] for r in some), 3)
            for name in ("perplexity", "agrees", "prompt")
        }
        found.append({"user": "all", "way": way, "wins": share(won), **means})
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| user | way | wins by the user's own taste | perplexity | agrees | prompt |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for r in rows:
        agrees = "" if r["way"] == HISTORY else f"{r['agrees']:.2f}"
        cells = [r["user"], WAYS[r["way"]], shown(r["wins"]), f"{r['perplexity']:.2f}x", agrees]
        lines.append(f"| {' | '.join(cells)} | {r['prompt']:+.0f} |")
    return lines


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A group of bars a user."""
    names = list(dict.fromkeys(r["user"] for r in rows))
    figure = Figure(figsize=(1.5 * len(names) + 1, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for place, way in enumerate(WAYS):
        some = {r["user"]: r["wins"] for r in rows if r["way"] == way}
        x = np.arange(len(names)) + 0.2 * (place - 1.5)
        mean, low, high = (np.array([100 * some[name][i] for name in names]) for i in range(3))
        axes.bar(
            x, mean, 0.18, yerr=[mean - low, high - mean], label=WAYS[way], error_kw={"lw": 0.8}
        )
    axes.axhline(50, color="0.5", linewidth=0.8)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("wins by the user's own taste, %")
    axes.legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = arguments.parser(__doc__)
    arguments.add_question(parser, tokens=48)
    parser.add_argument("--turns", type=int, default=4, help="of the dialogue")
    parser.add_argument("--read", type=int, default=6, help="plain answers that w is read from")
    parser.add_argument("--mixed", type=int, default=2, help="users who like two dimensions")
    args = parser.parse_args()
    setting = Setting.of(args)
    setting.require_heads()
    for name in setting.dimensions:
        if name not in setting.jury.judge.classifiers:
            raise SystemExit(
                f"{name}: dimensions that a sentence taught are accepted (--dimensions)"
            )
    users = hidden(setting.dimensions, args.mixed)
    known = dialogue.told(setting, users, args.turns)
    space = Space(Reader.of(setting.base, setting.adapter))
    some = slice(args.turns, args.turns + args.read)
    contexts = {
        name: lambda chat, one=one: [*dialogue.messages(one), *chat] for name, one in known.items()
    }
    space.read(setting.others[some], setting.plain[some], contexts)
    found = {
        (user.name, way): w
        for user in users
        for way, w in weights(space, user, known[user.name]).items()
    }
    each = rows(setting, space, users, known, found)
    everyone = summary(each)
    lines = table([*everyone, *each])
    texts = {name: dialogue.messages(one) for name, one in known.items()}
    result = {"all": everyone, "rows": each, "dialogues": texts, "table": lines}
    result |= {**setting.about(), "turns": args.turns}
    arguments.tell(args, result, partial(draw, [*everyone, *each]))


if __name__ == "__main__":
    main()
