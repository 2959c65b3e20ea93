"""Runs of `pad-vllm fit` in this process, and files of choices for it."""

from __future__ import annotations

import json

import typer
from typer.testing import CliRunner

from pad_vllm.cli import fit as fit_command


def fit_runner(base, adapter):
    """A function of further arguments -> the result of the command. COLUMNS says how wide it prints."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(fit_command.fit)
    options = ["--adapter", str(adapter)]
    return lambda *argv: CliRunner().invoke(app, [str(base), *map(str, argv), *options])


def write_lines(path, rows):
    """A file with a JSON line for each row -> its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
