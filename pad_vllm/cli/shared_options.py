"""Arguments that several commands share, what they are turned into, and options made from other definitions.

In: command-line values, a settings class, another command. Out: Typer annotations; values that modules take.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.text.chat_template import read_chat_template

Command = TypeVar("Command", bound=Callable[..., None])

BaseArgument = Annotated[
    str,
    typer.Argument(
        metavar="BASE", help="A name of `pad-vllm models`, a folder, or a model's hub name."
    ),
]
AdapterArgument = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="Folder of a PAD adapter, or `demo`.")
]
BackboneOption = Annotated[
    str, typer.Option("--base", help="The model that the adapter was trained on.")
]
AdapterOption = Annotated[
    str, typer.Option("--adapter", help="Folder of a PAD adapter, or `demo`.")
]
CacheOption = Annotated[
    Path | None,
    typer.Option(help="Folder of stored fork activations (default: $PAD_VLLM_CACHE/train)."),
]
ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        metavar="FILE",
        help="Jinja chat template of BASE, if it has none of its own.",
    ),
]
JsonLinesOutput = Annotated[
    Path,
    typer.Option(help="JSONL file to append to. The same command again goes on where it stopped."),
]


def chat_template_text(given: str | None) -> str | None:
    """The text of a ChatTemplateOption. Raises ValueError for a file that cannot be read."""
    return None if given is None else read_chat_template(given, "--chat-template")


def command_line_as_typed() -> str:
    """The command line of this process, for the files that a command writes."""
    return shlex.join(["pad-vllm", *sys.argv[1:]])


def name_value_pairs(option: str, given: Sequence[str], accepted: str) -> dict[str, str]:
    """The values of an option that takes NAME=VALUE several times.

    Args:
        option: Name of the option, such as --told.
        given: The values as typed.
        accepted: What each name may have once, for the message: "one adapter a name".

    Returns:
        Name -> value without surrounding blanks; a value may be empty.

    Raises:
        ValueError: A name is given twice.
    """
    pairs: dict[str, str] = {}
    for text in given:
        name, _, value = (part.strip() for part in text.partition("="))
        if name in pairs:
            raise ValueError(f"{option} {name} is given twice; accepted: {accepted}")
        pairs[name] = value
    return pairs


def fetch_reward_backbone(engine: str | None, adapter: str | Path) -> None:
    """Fetches the backbone of an adapter for an engine that loads it as a model of its own.

    The engine's worker fetches nothing, so this has to happen before it starts. engine: of config.ENGINES;
    None: the default, `shared`, which has no such model.
    """
    if engine not in (None, "shared"):
        resolve_base(read_config(adapter).backbone.name)


VLLMOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="An argument of the vLLM engine that draws answers, such as gpu_memory_utilization=0.8, "
        "tensor_parallel_size=2 or quantization=fp8; once for each.",
    ),
]


def vllm_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Name -> value of the texts of --vllm; a value that is JSON is read as such.

    Raises ValueError for a text without a name or a value.
    """
    arguments = {}
    for name, text in name_value_pairs("--vllm", texts, "one value a name").items():
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if not name.isidentifier() or text == "":
            raise ValueError(
                f"--vllm {name}={text}: NAME=VALUE is accepted, NAME an argument of vLLM such as "
                "gpu_memory_utilization"
            )
        arguments[name] = value
    return arguments


DtypeOption = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"] | None,
    typer.Option(
        help="Type in which the base answers and reads (default: bfloat16; float32 on a CPU without "
        "instructions for it).",
    ),
]


def device_dtype() -> str:
    """The type in which this machine draws, reads and trains by default."""
    from pad_vllm.opened_base import default_device, default_dtype

    return default_dtype(default_device())


def options_from_fields(settings: Any, names: Collection[str]) -> list[inspect.Parameter]:
    """One command-line option per named field of a pydantic dataclass.

    Type, help and lower bound are the field's own. settings: an instance, whose values are the defaults.
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
    """Decorator: shows Typer these options in place of a command's `**keywords`."""

    def decorate(command: Command) -> Command:
        parameters = inspect.signature(command, eval_str=True).parameters.values()
        named = [p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
        signature = inspect.Signature([*named, *options])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
        return command

    return decorate


def options_of(command: Callable[..., None], leave_out: Collection[str]) -> list[inspect.Parameter]:
    """The options of another command, for one that passes them on to it.

    leave_out: names of parameters that this command does not take or defines itself.
    """
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    return [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for p in parameters
        if p.name not in leave_out
    ]


def hidden_options_of(
    command: Callable[..., None], leave_out: Collection[str]
) -> list[inspect.Parameter]:
    """The same, accepted and not shown in --help."""
    return [p.replace(annotation=_hidden(p.annotation)) for p in options_of(command, leave_out)]


def _hidden(annotation: Any) -> Any:
    option = copy.copy(annotation.__metadata__[0])
    option.hidden = True
    return Annotated[annotation.__origin__, option]


def _option(name: str, hint: Any, default: object) -> Any:
    field = hint.__metadata__[0]
    lower_bound = next((bound.ge for bound in field.metadata if hasattr(bound, "ge")), None)
    flag = "--" + name.replace("_", "-")
    flags = () if not isinstance(default, bool) else (f"{flag}/--un{name}" if default else flag,)
    option = typer.Option(*flags, min=lower_bound, help=field.description)
    return Annotated[hint.__origin__, option]
