"""Arguments that several commands share, and options made from the fields of a settings class."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from pad_vllm.text.chat_template import read_chat_template

Command = TypeVar("Command", bound=Callable[..., None])

BaseArgument = Annotated[
    str,
    typer.Argument(
        metavar="BASE", help="A name of `pad-vllm models`, a folder, or a model's hub name."
    ),
]
AdapterOption = Annotated[
    str, typer.Option("--adapter", help="Folder of a PAD adapter, or `demo`.")
]
CacheOption = Annotated[
    Path | None,
    typer.Option(help="Folder of fork activations (default: $PAD_VLLM_CACHE/train)."),
]
ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        metavar="FILE",
        help="Jinja template that puts conversations to BASE, where it has none of its own.",
    ),
]
JsonLinesOutput = Annotated[
    Path,
    typer.Option(help="JSONL to append to; the same command again continues where it stopped."),
]


def chat_template_text(given: str | None) -> str | None:
    """The text of a ChatTemplate."""
    return None if given is None else read_chat_template(given, "--chat-template")


def command_line_as_typed() -> str:
    """The command as it was typed, for what it writes."""
    return shlex.join(["pad-vllm", *sys.argv[1:]])


def name_value_pairs(option: str, given: Sequence[str], one: str) -> dict[str, str]:
    """What was typed as NAME=VALUE; a value may be empty. ValueError for a name twice.

    one: what is accepted of a name, in words.
    """
    found: dict[str, str] = {}
    for text in given:
        name, _, value = (part.strip() for part in text.partition("="))
        if name in found:
            raise ValueError(f"{option} {name} is given twice; accepted: {one}")
        found[name] = value
    return found


def sampling_dtype() -> str:
    """vLLM's dtype for drawing responses: not bfloat16 on CPUs, many of which are ten times slower in it."""
    import torch

    return "auto" if torch.cuda.is_available() else "float32"


def options_from_fields(settings: Any, names: Collection[str]) -> list[inspect.Parameter]:
    """One command-line option for each named field of a pydantic dataclass: type, default, help and
    lower bound are the field's own. settings: an instance, whose values are the defaults.
    """
    hints = get_type_hints(type(settings), include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=getattr(settings, field.name),
            annotation=_option(field.name, hints[field.name], getattr(settings, field.name)),
        )
        for field in dataclasses.fields(settings)
        if field.name in names
    ]


def with_options(*options: inspect.Parameter) -> Callable[[Command], Command]:
    """Put options in the place of a command's `**keywords`, for Typer to read."""

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters.values()
        shown = [parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
        whole = inspect.Signature([*shown, *options])
        command.__signature__ = whole  # type: ignore[attr-defined]
        command.__annotations__ = {name: p.annotation for name, p in whole.parameters.items()}
        return command

    return decorate


def _option(name: str, hint: Any, default: object) -> Any:
    said = hint.__metadata__[0]
    least = next((bound.ge for bound in said.metadata if hasattr(bound, "ge")), None)
    flag = "--" + name.replace("_", "-")
    spelled = () if not isinstance(default, bool) else (f"{flag}/--un{name}" if default else flag,)
    return Annotated[hint.__origin__, typer.Option(*spelled, min=least, help=said.description)]
