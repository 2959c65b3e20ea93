"""The `pad-vllm` program: its commands, one file each.

In: command-line arguments. Out: text, files, or a running vLLM server; exit code 0 for success, 1 for an
error that the user can correct, 2 for an invalid command line. A command reads its arguments and calls the
module that does the work. Commands import modules that need torch or vLLM inside their function.
"""

from __future__ import annotations

from typing import Annotated

import typer

from pad_vllm.cli.check import check
from pad_vllm.cli.dose import dose
from pad_vllm.cli.evaluate import evaluate
from pad_vllm.cli.explain import explain
from pad_vllm.cli.fit import fit
from pad_vllm.cli.merge import merge
from pad_vllm.cli.merge_lora import merge_lora
from pad_vllm.cli.models import models
from pad_vllm.cli.play import play
from pad_vllm.cli.record_user_choices import choose
from pad_vllm.cli.sample_training_responses import sample
from pad_vllm.cli.score import score
from pad_vllm.cli.serve import serve
from pad_vllm.cli.steer import steer
from pad_vllm.cli.train import train
from pad_vllm.cli.user_token import user_token
from pad_vllm.version import __version__

app = typer.Typer(
    name="pad-vllm",
    help="Personalized alignment at decoding time, in vLLM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_PREPARE = (models, check, sample, score, merge_lora, user_token)
_TRAIN = (train, dose, merge, evaluate, steer, explain, choose, fit)
for command in (*_PREPARE, *_TRAIN):
    app.command()(command)
# These pass all other arguments on to vLLM.
_VLLM_FLAGS = {"ignore_unknown_options": True, "allow_extra_args": True}
app.command(context_settings=_VLLM_FLAGS)(serve)
app.command(context_settings=_VLLM_FLAGS)(play)


def main() -> None:
    """Entry point of the `pad-vllm` script."""
    app()


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
