"""The page of the program's commands, made of what `pad-vllm COMMAND --help` reads.

In: the Typer program. Out: Markdown. Knows no command by name.
"""

from __future__ import annotations

import inspect
from typing import Any

import typer


def command_page(app: typer.Typer) -> str:
    """Every command with its arguments, options and defaults."""
    group: Any = typer.main.get_command(app)
    parts = [
        "# Commands\n",
        "This page is made from the program itself; `pad-vllm COMMAND --help` shows the same.\n",
    ]
    for name, command in sorted(group.commands.items()):
        parts.append(f"## `pad-vllm {name}`\n")
        parts.append(inspect.cleandoc(command.help or "") + "\n")
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join((argument.metavar or argument.name).upper() for argument in arguments)
        parts.append(f"```text\npad-vllm {name} {usage} [OPTIONS]\n```\n")
        rows = [_row(parameter) for parameter in command.params if not _is_hidden(parameter)]
        if rows:
            parts.append(
                "\n".join(["| | meaning | default |", "| --- | --- | --- |", *rows]) + "\n"
            )
    return "\n".join(parts)


def _is_hidden(parameter: Any) -> bool:
    return bool(getattr(parameter, "hidden", False))


def _row(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    if parameter.param_type_name == "argument":
        names = [(parameter.metavar or parameter.name).upper()]
    shown = ", ".join(f"`{name}`" for name in names)
    text = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
    text = text.removesuffix(" [required]").replace("\\[", "[").replace("[", "\\[")
    return f"| {shown} | {text} | {_default(parameter)} |"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if (
        "(default" in (getattr(parameter, "help", None) or "")
        or callable(value)
        or value in (None, "")
        or "UNSET" in repr(value).upper()
    ):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value}`"
