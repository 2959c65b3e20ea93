"""`pad-vllm merge`: puts dimensions of several adapters into one adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pad_vllm.cli.error_reporting import report_errors

if TYPE_CHECKING:
    from pad_vllm.adapter.combine_adapters import AdapterPart


def merge(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER[:NAME[=FACTOR],...]...",
            help="Folders of heads-only adapters on one base, or `demo`, each with the dimensions to take "
            "(default: all). A dimension that several adapters have becomes the sum of theirs, each times "
            "its FACTOR: 0.7 for each of two keeps the spread of rewards if they reward different things. "
            "NAME=0 takes the learned prefix of that name without the head.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new adapter.")],
    beta: Annotated[
        float | None,
        typer.Option(help="Default strength of the new adapter (default: the first adapter's)."),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Default min-p guard of the new adapter (default: the first adapter's)."),
    ] = None,
    loop_price: Annotated[
        float | None,
        typer.Option(
            help="Default price of a loop of the new adapter, in logits (default: the first adapter's)."
        ),
    ] = None,
) -> None:
    """Put dimensions of several adapters into one adapter."""
    with report_errors():
        from pad_vllm.adapter.adapter_folder import save_adapter
        from pad_vllm.adapter.combine_adapters import merge_adapters
        from pad_vllm.training.report.model_card import model_card_text

        parts = [_part(text) for text in adapters]
        adapter = merge_adapters(parts, beta=beta, min_p=min_p, loop_price=loop_price)
        save_adapter(adapter, out, model_card_text(adapter.config, None))
        typer.echo(f"wrote {out}: {', '.join(adapter.config.dimensions)}")


def _part(text: str) -> AdapterPart:
    """The part that FOLDER[:NAME[=FACTOR],...] names."""
    from pad_vllm.adapter.adapter_folder import load_adapter
    from pad_vllm.adapter.combine_adapters import AdapterPart
    from pad_vllm.catalog.name_resolution import resolve_adapter

    folder, colon, names = text.rpartition(":")
    if not colon or Path(text).is_dir():
        return AdapterPart(load_adapter(resolve_adapter(text)), {})
    adapter = load_adapter(resolve_adapter(folder))
    return AdapterPart(adapter, dict(_factor(name) for name in names.split(",")))


def _factor(text: str) -> tuple[str, float]:
    name, _, factor = (part.strip() for part in text.partition("="))
    try:
        return name, float(factor or 1)
    except ValueError:
        raise ValueError(f"{text}: NAME or NAME=FACTOR is accepted, FACTOR a number") from None
