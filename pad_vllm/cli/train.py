"""`pad-vllm train`: a command line into Settings; one option for each of their fields.

Dimensions come from data that scores them (--data), or from sentences (--teacher prompt): taught.py reads
the options of the teachers.
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
    chat_template_text,
    command_line_as_typed,
    options_from_fields,
    with_options,
)
from pad_vllm.cli.teacher_options import (
    METHOD_DEFAULTS,
    PROMPT_RECIPE_DEFAULTS,
    AnswersOption,
    DimensionOption,
    OppositeOption,
    PromptsOption,
    TeacherOption,
    Trial,
    defaults_not_typed,
    distillation_settings,
)
from pad_vllm.training.settings import Recipe, Settings

_DEFAULT, _RECIPE = Settings("", (), ""), Recipe()
_WRITTEN_OUT = (
    "base",
    "data",
    "out",
    "dimensions",
    "chat_template",
    "teacher",
    "by_credit",
    "recipe",
)
_SETTINGS = [f.name for f in dataclasses.fields(Settings) if f.name not in _WRITTEN_OUT]
_OFTEN = ("epochs", "head_epochs", "seed")


@with_options(*options_from_fields(_DEFAULT, _SETTINGS), *options_from_fields(_RECIPE, _OFTEN))
def train(
    base: BaseArgument,
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the adapter.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME[:DIMENSION][=PATH][@WEIGHT] of helpsteer2, ric, saferlhf, hh-rlhf or jsonl; "
            "again for each source. WEIGHT: how often an epoch sees it. Not with --teacher prompt."
        ),
    ] = None,
    dimensions: Annotated[
        str,
        typer.Option(
            help="With --data: some of the dimensions that it scores, comma-separated; default: all. "
            "--dimension makes one of a sentence."
        ),
    ] = "",
    teacher: TeacherOption = "pairs",
    dimension: DimensionOption = None,
    opposite: OppositeOption = None,
    prompts: PromptsOption = None,
    answers: AnswersOption = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of any other choice in training/settings.py's Recipe."),
    ] = None,
    cache: CacheOption = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Ray Train workers; 0: this process alone.")
    ] = 0,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget an unfinished run in OUT.run.")
    ] = False,
    trial: Trial = True,
    chat_template: ChatTemplateOption = None,
    **chosen: Any,
) -> None:
    """Train a reward adapter for BASE. Stopped at any moment, the same command goes on."""
    with report_errors():
        taught = distillation_settings(context, teacher, dimension, opposite, prompts, answers)
        chosen = {**chosen, **defaults_not_typed(context, METHOD_DEFAULTS[teacher])}
        often = {name: chosen.pop(name) for name in _OFTEN}
        by_recipe = {**often, **(PROMPT_RECIPE_DEFAULTS if taught else {}), **_parsed(recipe or [])}
        settings = Settings(
            base=base,
            data=tuple(data or ()),
            out=str(out),
            dimensions=tuple(part.strip() for part in dimensions.split(",") if part.strip()),
            chat_template=chat_template_text(chat_template),
            teacher=taught,
            by_credit=teacher == "scores",
            recipe=Recipe(**by_recipe),
            **chosen,
        )
        _train(settings, cache or training_cache_dir(), workers, address, restart=restart)
        if taught and trial:
            _try(settings)


def _train(
    settings: Settings, cache: Path, workers: int, address: str | None, *, restart: bool
) -> None:
    require_package("peft")
    from pad_vllm.training.ray_training import train_on_ray
    from pad_vllm.training.training_methods import run_of
    from pad_vllm.training.training_run import run_folder

    command = command_line_as_typed()
    if restart:
        shutil.rmtree(run_folder(settings), ignore_errors=True)
    if workers:
        train_on_ray(settings, cache, command, workers, address)
    else:
        run_of(settings)(settings, cache, command).train()


def _try(settings: Settings) -> None:
    from pad_vllm.steering.trial import trial

    typer.echo("A first look, too short to judge by (--no-trial leaves it out):")
    for line in trial(settings.base, settings.out, settings.dtype):
        typer.echo(line)


def _parsed(choices: list[str]) -> dict[str, Any]:
    """NAME=VALUE of Recipe fields, in each field's own type."""
    fields = {name: type(value) for name, value in dataclasses.asdict(Recipe()).items()}
    choice_of: dict[str, Any] = {}
    for choice in choices:
        name, _, value = choice.partition("=")
        kind = fields.get(name, _none)
        try:
            choice_of[name] = {"true": True, "false": False}[value] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise ValueError(
                f"--recipe {choice}: NAME=VALUE is accepted, NAME one of {', '.join(fields)}, VALUE "
                "a number, or true or false"
            ) from None
    return choice_of


def _none(value: str) -> Any:
    raise ValueError(value)
