"""`pad-vllm check`: which engines can serve a base with an adapter on the vLLM that is installed here?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.cli.error_reporting import report_errors
from pad_vllm.cli.shared_options import AdapterOption, BaseArgument


def check(
    base: BaseArgument,
    adapter: AdapterOption,
    backbone: Annotated[
        str, typer.Option(help="The reward model's own backbone, where BASE is another model.")
    ] = "",
) -> None:
    """Say which engines can serve BASE with ADAPTER on the vLLM that is installed here."""
    with report_errors():
        from pad_vllm.serving.launch.compatibility_report import (
            compatibility_findings,
            servable_engines,
        )

        rows = compatibility_findings(resolve_base(base), resolve_adapter(adapter), backbone)
    table = Table("", "for", "check", "detail")
    for row in rows:
        mark = "[green]ok[/]" if row.ok else "[red]no[/]"
        table.add_row(mark, row.engine, row.name, escape(row.detail))
    Console().print(table)
    engines = servable_engines(rows)
    summary = (
        f"Engines that can serve this: {', '.join(engines)}" if engines else "No engine can serve"
    )
    Console().print(summary, highlight=False)
    if not engines:
        raise typer.Exit(1)
