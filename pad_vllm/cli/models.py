"""`pad-vllm models`: fetches the two small real models."""

from __future__ import annotations

from typing import Annotated

import typer

from pad_vllm.catalog.model_downloads import DOWNLOADABLE_MODELS, fetch_model
from pad_vllm.cli.error_reporting import report_errors


def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help=f"Any of {', '.join(DOWNLOADABLE_MODELS)}."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress lines.")] = False,
) -> None:
    """Fetch and convert the small real models (default: all) and print their folders."""
    with report_errors():
        for name in names or DOWNLOADABLE_MODELS:
            typer.echo(f"{name}\t{fetch_model(name, quiet=quiet)}")
