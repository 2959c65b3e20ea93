"""`pad-vllm train`: a command line into Settings, with an option for nearly each of their fields.

Dimensions come from data that scores them (--data), or from instructions (--teacher prompt);
teacher_options.py has what depends on --teacher.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from pad_vllm.catalog.model_downloads import training_cache_dir
from pad_vllm.cli.error_reporting import report_errors, require_package
from pad_vllm.cli.shared_options import (
    BaseArgument,
    CacheOption,
    ChatTemplateOption,
    VLLMOption,
    chat_template_text,
    command_line_as_typed,
    device_dtype,
    options_from_fields,
    vllm_arguments,
    with_options,
)
from pad_vllm.cli.teacher_options import (
    METHOD_DEFAULTS,
    PROMPT_RECIPE_DEFAULTS,
    AnswersOption,
    DimensionOption,
    GateOption,
    OppositeOption,
    PrefixEpochsOption,
    PrefixForkLayerOption,
    PrefixOption,
    PrefixTokensOption,
    PromptsOption,
    TeacherOption,
    TrialOption,
    defaults_not_typed,
    distillation_settings,
    prefix_settings,
    require_method,
    warn_of_trial,
)
from pad_vllm.training.settings import Recipe, Settings

_DEFAULT_SETTINGS, _DEFAULT_RECIPE = Settings("", (), ""), Recipe()
_OWN_PARAMETERS = (
    "base",
    "data",
    "out",
    "dimensions",
    "chat_template",
    "teacher",
    "method",
    "recipe",
    "vllm",
)
"""Fields of Settings that are not made into options here: `train` has a parameter for each."""

_FIELD_OPTIONS = [f.name for f in dataclasses.fields(Settings) if f.name not in _OWN_PARAMETERS]
_RECIPE_OPTIONS = ("epochs", "head_epochs", "seed")
"""Fields of Recipe with an option of their own; the others are choices of --recipe."""


OutOption = Annotated[Path, typer.Option(help="Folder of the adapter.")]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME[:DIMENSION][=PATH]\\[@WEIGHT] of helpsteer2, ric, saferlhf, hh-rlhf, ultrafeedback, "
        "ultrafeedback-binarized or jsonl (records, TRL's pairs, chats and thumbs, ratings); "
        "repeat it for more sources. WEIGHT: how often an epoch sees the source. Not with "
        "--teacher prompt."
    ),
]
DimensionsOption = Annotated[
    str,
    typer.Option(
        help="With --data: some of the dimensions that it scores, comma-separated; default: all. "
        "To make a dimension of an instruction, use --dimension."
    ),
]
RecipeOption = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=VALUE of any other field of Recipe in training/settings.py; repeat it for more."
    ),
]
WorkersOption = Annotated[
    int, typer.Option(min=0, help="Number of Ray Train workers; 0 trains in this process.")
]
AddressOption = Annotated[
    str | None, typer.Option(help="With --workers: address of a Ray cluster.")
]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="Delete an unfinished run in OUT.run and begin anew.")
]


@with_options(
    *options_from_fields(_DEFAULT_SETTINGS, _FIELD_OPTIONS),
    *options_from_fields(_DEFAULT_RECIPE, _RECIPE_OPTIONS),
)
def train(
    base: BaseArgument,
    context: typer.Context,
    out: OutOption,
    data: DataOption = None,
    dimensions: DimensionsOption = "",
    teacher: TeacherOption = "pairs",
    dimension: DimensionOption = None,
    opposite: OppositeOption = None,
    prompts: PromptsOption = None,
    answers: AnswersOption = None,
    gate: GateOption = True,
    prefix: PrefixOption = False,
    prefix_tokens: PrefixTokensOption = None,
    prefix_fork_layer: PrefixForkLayerOption = None,
    prefix_epochs: PrefixEpochsOption = None,
    recipe: RecipeOption = None,
    cache: CacheOption = None,
    workers: WorkersOption = 0,
    address: AddressOption = None,
    restart: RestartOption = False,
    trial: TrialOption = None,
    chat_template: ChatTemplateOption = None,
    vllm: VLLMOption = None,
    **field_values: Any,
) -> None:
    """Train a reward adapter for BASE. If it is stopped, the same command resumes it."""
    with report_errors():
        warn_of_trial(trial)
        method = require_method(teacher)
        distillation = distillation_settings(
            context,
            method=method,
            dimension=dimension,
            opposite=opposite,
            prompts=prompts,
            answers=answers,
            gate=gate,
            prefix=prefix_settings(
                prefix=prefix,
                tokens=prefix_tokens,
                fork_layer=prefix_fork_layer,
                epochs=prefix_epochs,
            ),
        )
        require_package("peft")
        defaults = {"dtype": device_dtype(), **METHOD_DEFAULTS[method]}
        chosen = {**field_values, **defaults_not_typed(context, defaults)}
        recipe_values = {name: chosen.pop(name) for name in _RECIPE_OPTIONS}
        if method == "prompt":
            recipe_values |= PROMPT_RECIPE_DEFAULTS
        settings = Settings(
            base=base,
            data=tuple(data or ()),
            out=str(out),
            dimensions=tuple(part.strip() for part in dimensions.split(",") if part.strip()),
            chat_template=chat_template_text(chat_template),
            vllm=vllm_arguments(vllm or ()),
            teacher=distillation,
            method=method,
            recipe=Recipe(**{**recipe_values, **_recipe_choices(recipe or [])}),
            **chosen,
        )
        _train(settings, cache or training_cache_dir(), workers, address, restart=restart)


def _train(
    settings: Settings, cache: Path, workers: int, address: str | None, *, restart: bool
) -> None:
    require_package("peft")
    from pad_vllm.training.ray_training import train_on_ray
    from pad_vllm.training.run_folder import run_folder
    from pad_vllm.training.training_run import TrainingRun

    command = command_line_as_typed()
    if restart:
        shutil.rmtree(run_folder(settings), ignore_errors=True)
    if workers:
        train_on_ray(settings, cache, command, workers, address)
    else:
        TrainingRun(settings, cache, command).train()


def _recipe_choices(choices: list[str]) -> dict[str, Any]:
    """NAME=VALUE texts as fields of Recipe, each value in its field's type.

    Raises ValueError for an unknown name or a value of another type.
    """
    type_of = {name: type(value) for name, value in dataclasses.asdict(_DEFAULT_RECIPE).items()}
    values: dict[str, Any] = {}
    for choice in choices:
        name, _, text = choice.partition("=")
        try:
            kind = type_of[name]
            values[name] = {"true": True, "false": False}[text] if kind is bool else kind(text)
        except (ValueError, KeyError):
            raise ValueError(
                f"--recipe {choice}: NAME=VALUE is accepted, NAME one of {', '.join(type_of)}, VALUE "
                "a number, or true or false"
            ) from None
    return values
