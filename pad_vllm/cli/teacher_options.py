"""What depends on `pad-vllm train --teacher`: the options of each method, and its defaults.

In: what was typed. Out: DistillationSettings for instructions, and defaults for a run's settings. Refuses, by
name, options that belong to another method.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from pad_vllm.cli.shared_options import name_value_pairs
from pad_vllm.training.settings import (
    METHOD_NAMES,
    DistillationSettings,
    MethodName,
    PrefixSettings,
)

SCORES_DEFAULTS: dict[str, Any] = {"head_rank": 128, "beta": 0.8, "no_repeat": 3, "min_p": 0.15}
"""Defaults of --teacher scores where they differ from Settings': its rewards have a spread of one logit."""

PROMPT_DEFAULTS: dict[str, Any] = {
    "epochs": 4,
    "head_epochs": 0,
    **SCORES_DEFAULTS,
    "max_response": 80,
}
"""Defaults of --teacher prompt that have an option, of Settings and of Recipe."""

PROMPT_RECIPE_DEFAULTS: dict[str, Any] = {"lora_lr": 2e-4, "head_lr": 1e-4, "evaluate_every": 20}
"""Defaults of --teacher prompt that have none: small steps, for a target at every token and candidate."""

METHOD_DEFAULTS: dict[MethodName, dict[str, Any]] = {
    "pairs": {},
    "scores": SCORES_DEFAULTS,
    "prompt": PROMPT_DEFAULTS,
}
"""Value of --teacher -> the options' defaults with it."""

_DATA_OPTIONS = ("data", "dimensions", "limit", "strict", "prompted", "text_preferences")
_PROMPT_OPTIONS = (
    "dimension",
    "opposite",
    "prompts",
    "answers",
    "gate",
    "prefix",
    "prefix_tokens",
    "prefix_fork_layer",
    "prefix_epochs",
)
_PREFIX = PrefixSettings()


def _as_options(defaults: dict[str, Any]) -> str:
    return ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in defaults.items())


TeacherOption = Annotated[
    str,
    typer.Option(
        metavar="|".join(METHOD_DEFAULTS),
        help="pairs: learn, step by step, which of --data's responses is preferred. scores: learn from the "
        "scores of BASE's own responses (made by `pad-vllm sample` and `pad-vllm score`, given as --data) in "
        f"one step in closed form; defaults are then {_as_options(SCORES_DEFAULTS)}. prompt: learn from "
        "instructions, without --data; BASE itself, with the instruction in its prompt, is the teacher. "
        f"Needs --dimension; defaults are then {_as_options(PROMPT_DEFAULTS)}.",
    ),
]
DimensionOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar='NAME="SENTENCE"',
        help="With --teacher prompt: a dimension and the instruction that BASE is given for it, such as "
        'friendly="Answer in a warm and casual tone."; repeat it for more dimensions.',
    ),
]
OppositeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar='NAME="SENTENCE"',
        help="With --teacher prompt: the instruction of the opposite of --dimension NAME; the dimension is "
        "then half the difference of the two.",
    ),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        help='With --teacher prompt: .jsonl of {"prompt": text or messages}, or .txt with a prompt a line '
        "(default: 160 that ship with the package)."
    ),
]
AnswersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With --teacher prompt: how many of the prompts BASE answers (default: 420); from the other "
        "prompts only the first token of an answer is learned.",
    ),
]
GateOption = Annotated[
    bool,
    typer.Option(
        "--gate/--no-gate",
        help="With --teacher prompt: heads with gates, which explain more of the teacher's rewards, for one "
        "more product of their rank in a step. What other --teacher make has none.",
    ),
]
PrefixOption = Annotated[
    bool,
    typer.Option(
        "--prefix",
        help="With --teacher prompt: also train a learned prefix of each dimension, keys and values that a "
        'request puts in front of the reward stream by `pad_preference: "NAME"`; served with --instructions.',
    ),
]
PrefixTokensOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With --prefix: virtual tokens of each, whole KV blocks of the server (default: "
        f"{_PREFIX.tokens}).",
    ),
]
PrefixForkLayerOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="With --prefix: first layer that reads it, and so the server's fork layer (default: half of "
        "BASE's layers).",
    ),
]
PrefixEpochsOption = Annotated[
    int | None,
    typer.Option(min=1, help=f"With --prefix: epochs of each (default: {_PREFIX.epochs})."),
]
TrialOption = Annotated[
    bool | None, typer.Option("--trial/--no-trial", hidden=True, help="Has no effect.")
]


def require_method(teacher: str) -> MethodName:
    """The method that --teacher names. Raises ValueError for any other text."""
    if teacher not in METHOD_NAMES:
        raise ValueError(f"--teacher {teacher}: one of {', '.join(METHOD_NAMES)} is accepted")
    return cast("MethodName", teacher)


def distillation_settings(
    context: typer.Context,
    *,
    method: MethodName,
    dimension: Sequence[str] | None,
    opposite: Sequence[str] | None,
    prompts: Path | None,
    answers: int | None,
    gate: bool,
    prefix: PrefixSettings | None,
) -> DistillationSettings | None:
    """The settings of method prompt; None for the methods that learn from data.

    Args:
        context: Knows which options were typed.
        method: Of --teacher.
        dimension: NAME=SENTENCE texts of --dimension.
        opposite: NAME=SENTENCE texts of --opposite.
        prompts: File of prompts; None for those that ship.
        answers: Prompts to answer; None for the default.
        gate: Whether the heads have gates.
        prefix: Of `prefix_settings`.

    Raises:
        ValueError: An option that belongs to another method, no --data or no --dimension where one is
            needed, or a text that is not NAME=SENTENCE.
    """
    _refuse_options_of_other_methods(context, method)
    if method != "prompt":
        return None
    if not dimension:
        raise ValueError(
            '--teacher prompt has no dimension to teach: give --dimension NAME="SENTENCE"'
        )
    settings = DistillationSettings(
        sentences=name_value_pairs("--dimension", dimension, "one sentence a dimension"),
        opposites=name_value_pairs("--opposite", opposite or (), "one sentence a dimension"),
        prompts=str(prompts or ""),
        prefix=prefix,
        gate=gate,
    )
    return settings if answers is None else dataclasses.replace(settings, answers=answers)


def prefix_settings(*, prefix: bool, **values: int | None) -> PrefixSettings | None:
    """The settings of learned prefixes; None where --prefix was not typed.

    Args:
        prefix: Whether it was.
        values: Fields of PrefixSettings; None for the default.

    Raises:
        ValueError: A value without --prefix.
    """
    typed = {name: value for name, value in values.items() if value is not None}
    if typed and not prefix:
        flag = f"--prefix-{next(iter(typed)).replace('_', '-')}"
        raise ValueError(f"{flag} is a choice of --prefix: add it, or leave this out")
    return PrefixSettings(**typed) if prefix else None


def defaults_not_typed(context: typer.Context, defaults: dict[str, Any]) -> dict[str, Any]:
    """The method's defaults of the options that were not typed."""
    return {name: value for name, value in defaults.items() if not _is_typed(context, name)}


def warn_of_trial(trial: bool | None) -> None:
    """Say on stderr, where --trial or --no-trial was typed, that there is no trial any more."""
    if trial is not None:
        typer.echo(
            "--trial and --no-trial have no effect: train answers no sample questions any more. See what the "
            "adapter does with `pad-vllm explain` or `pad-vllm steer`.",
            err=True,
        )


def _refuse_options_of_other_methods(context: typer.Context, method: MethodName) -> None:
    if method == "prompt":
        if flags := _typed_flags(context, _DATA_OPTIONS):
            raise ValueError(
                f"{flags[0]} is for data that scores dimensions, --teacher prompt for dimensions made of "
                "instructions: leave one of the two out"
            )
        return
    if flags := _typed_flags(context, _PROMPT_OPTIONS):
        raise ValueError(
            f"{flags[0]} belongs to --teacher prompt, which makes dimensions of instructions: add it, or "
            "leave this out (--dimensions picks from those that --data scores)"
        )
    if not _is_typed(context, "data"):
        raise ValueError(
            "there is nothing to learn from: give --data NAME[=PATH], or --teacher prompt with "
            '--dimension NAME="SENTENCE"'
        )


def _typed_flags(context: typer.Context, names: Sequence[str]) -> list[str]:
    return ["--" + name.replace("_", "-") for name in names if _is_typed(context, name)]


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
