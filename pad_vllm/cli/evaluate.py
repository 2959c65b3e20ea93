"""`pad-vllm evaluate`: computes an adapter's held-out accuracy again, on its own data or on other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pad_vllm.catalog.model_downloads import training_cache_dir
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.cli.error_reporting import report_errors
from pad_vllm.cli.shared_options import (
    AdapterArgument,
    BackboneOption,
    CacheOption,
    ChatTemplateOption,
    chat_template_text,
    hidden_options_of,
    with_options,
)
from pad_vllm.cli.steer import steer

_STEER_OPTIONS = hidden_options_of(steer, leave_out=("adapter", "base", "prompts", "chat_template"))


@with_options(*_STEER_OPTIONS)
def evaluate(
    adapter: AdapterArgument,
    base: BackboneOption,
    data: Annotated[
        list[str] | None,
        typer.Option(help="As for `pad-vllm train` (default: the adapter's training data)."),
    ] = None,
    cache: CacheOption = None,
    unseen: Annotated[
        list[str] | None,
        typer.Option(
            help="A dimension of the data that the adapter does not have: its weights are fitted from pairs "
            "of the training prompts and tested on the held-out ones."
        ),
    ] = None,
    choices: Annotated[
        int, typer.Option(help="Pairs that an unseen dimension is fitted from.")
    ] = 200,
    prompted: Annotated[
        bool,
        typer.Option(
            "--prompted/--no-prompted",
            help="Also measure the base with the preference in its prompt; takes minutes.",
        ),
    ] = True,
    chat_template: ChatTemplateOption = None,
    steering: Annotated[Path | None, typer.Option("--steering", hidden=True)] = None,
    **steer_options: Any,
) -> None:
    """Compute an adapter's held-out accuracy again, with the split that it was trained with.

    What guidance does to answers is measured by `pad-vllm steer`.
    """
    if steering is not None:
        typer.echo(
            "`pad-vllm evaluate ADAPTER --steering FILE` is `pad-vllm steer ADAPTER --prompts FILE` now. The "
            "old spelling works in this release and goes with the next.",
            err=True,
        )
        steer(adapter, base, steering, chat_template=chat_template, **steer_options)
        return
    with report_errors():
        from pad_vllm.training.report.evaluate_adapter import evaluate_held_out

        rows = evaluate_held_out(
            Path(resolve_adapter(adapter)),
            base,
            data,
            cache or training_cache_dir(),
            unseen or [],
            choices,
            chat_template_text(chat_template),
            prompted=prompted,
        )
    Console().print(_table(rows))


def _table(rows: list[dict[str, Any]]) -> Table:
    """The accuracies as a table, a row per preference.

    angle: degrees to the nearest trained preference. pairs: their number. trained, untrained: accuracy
    of the adapter and of its initial state. prompted: of the base with the preference in its prompt, on the
    first prompts; same: of the adapter on those. clear: of the adapter, on pairs with a wide margin.
    """
    table = Table()
    table.add_column("preference", no_wrap=True)
    for column in ("angle", "pairs", "trained", "clear", "untrained", "prompted", "same"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["preference"],
            f"{row['distance']:.0f}°",
            str(row["count"]),
            _accuracy(row, "trained", "pairs", digits=1),
            _accuracy(row, "trained", "clear", digits=1),
            _accuracy(row, "untrained", "pairs", digits=0),
            _accuracy(row, "prompted", "pairs", digits=0),
            _accuracy(row, "trained_there", "pairs", digits=0),
        )
    return table


def _accuracy(row: dict[str, Any], model: str, kind: str, *, digits: int) -> str:
    accuracy = row.get(model, {}).get(kind)
    return "" if accuracy is None else f"{accuracy:.{digits}%}"
