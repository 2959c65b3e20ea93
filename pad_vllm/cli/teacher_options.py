"""The options of `pad-vllm train --teacher`: scores by credit, or sentences in the place of data.

In: what was typed. Out: a Teacher for sentences, and the defaults of a run. Refuses, by name, what belongs to
another way of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pad_vllm.cli.shared_options import name_value_pairs
from pad_vllm.training import settings

SCORES_DEFAULTS: dict[str, Any] = {"head_rank": 128, "beta": 0.8, "no_repeat": 3, "min_p": 0.15}
"""Defaults in the place of Settings' own, for heads in units of one logit: of scores, by credit."""

PROMPT_DEFAULTS: dict[str, Any] = {
    "epochs": 4,
    "head_epochs": 0,
    **SCORES_DEFAULTS,
    "max_response": 80,
}
"""Of a sentence, with some of Recipe's, for targets as dense as a teacher's."""

PROMPT_RECIPE_DEFAULTS: dict[str, Any] = {"lora_lr": 2e-4, "head_lr": 1e-4, "evaluate_every": 20}

METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "pairs": {},
    "scores": SCORES_DEFAULTS,
    "prompt": PROMPT_DEFAULTS,
}
"""Those of --teacher, each with its defaults."""

_OF_DATA = ("data", "dimensions", "limit", "strict", "prompted", "text_preferences")
_OF_TEACHER = ("dimension", "opposite", "prompts", "answers", "trial")


def _listed(others: dict[str, Any]) -> str:
    return ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in others.items())


TeacherOption = Annotated[
    str,
    typer.Option(
        metavar="|".join(METHOD_DEFAULTS),
        help="pairs: learn which of --data's responses is preferred, step by step. scores: from the same "
        "data, BASE's own responses with a score for each (`pad-vllm sample`, `pad-vllm score`), by one "
        f"step in closed form; defaults are then {_listed(SCORES_DEFAULTS)}. prompt: from sentences, not from "
        "--data: BASE itself, told the sentence, is the teacher. Needs --dimension; defaults are then "
        f"{_listed(PROMPT_DEFAULTS)}.",
    ),
]
DimensionOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar='NAME="SENTENCE"',
        help="With --teacher prompt: a dimension and the sentence BASE is told for it, such as "
        'friendly="Answer in a warm and casual tone."; again for each.',
    ),
]
OppositeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar='NAME="SENTENCE"',
        help="With --teacher prompt: what the opposite of --dimension NAME would be told; the dimension "
        "is then half the difference of the two.",
    ),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        help='With --teacher prompt: .jsonl of {"prompt": text or messages}, or .txt, a prompt a line '
        "(default: 160 that ship with the package)."
    ),
]
AnswersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With --teacher prompt: how many of the prompts BASE answers (default: 420); of the others "
        "the first token is taught.",
    ),
]

Trial = Annotated[
    bool,
    typer.Option(
        "--trial/--no-trial",
        help="With --teacher prompt: at the end, answer a few questions with each dimension and show some.",
    ),
]


def distillation_settings(
    context: typer.Context,
    teacher: str,
    dimension: Sequence[str] | None,
    opposite: Sequence[str] | None,
    prompts: Path | None,
    answers: int | None,
) -> settings.DistillationSettings | None:
    """None for a run from data. Raises ValueError for what does not go together."""
    if teacher not in METHOD_DEFAULTS:
        raise ValueError(f"--teacher {teacher}: one of {', '.join(METHOD_DEFAULTS)} is accepted")
    _refuse_mixed(context, taught=teacher == "prompt")
    if teacher != "prompt":
        return None
    if not dimension:
        raise ValueError(
            '--teacher prompt has no dimension to teach: give --dimension NAME="SENTENCE"'
        )
    told = {"answers": answers} if answers else {}
    return settings.DistillationSettings(
        sentences=name_value_pairs("--dimension", dimension, "one sentence a dimension"),
        opposites=name_value_pairs("--opposite", opposite or (), "one sentence a dimension"),
        prompts=str(prompts or ""),
        **told,
    )


def defaults_not_typed(context: typer.Context, others: dict[str, Any]) -> dict[str, Any]:
    """Those of `others` that were not typed."""
    return {name: value for name, value in others.items() if not _typed(context, name)}


def _refuse_mixed(context: typer.Context, *, taught: bool) -> None:
    for name in _OF_DATA if taught else _OF_TEACHER:
        if _typed(context, name):
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{flag} is for data that scores dimensions, --teacher prompt for dimensions made of "
                f"sentences: leave one of the two out"
                if taught
                else f"{flag} belongs to --teacher prompt, which makes dimensions of sentences: add it, or "
                "leave this out (--dimensions picks from those that --data scores)"
            )
    if not taught and not _typed(context, "data"):
        raise ValueError(
            "there is nothing to learn from: give --data NAME[=PATH], or --teacher prompt with "
            '--dimension NAME="SENTENCE"'
        )


def _typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
