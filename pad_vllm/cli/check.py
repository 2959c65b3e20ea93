"""`pad-vllm check`: which engines can serve a base with an adapter on the vLLM that is installed here."""

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
        str,
        typer.Option(
            help="Folder or hub name of the reward model's backbone, if it is another model than BASE."
        ),
    ] = "",
) -> None:
    """Say which engines can serve BASE with ADAPTER on the vLLM that is installed here."""
    with report_errors():
        from pad_vllm.serving.launch.compatibility_report import (
            compatibility_findings,
            servable_engines,
        )

        findings = compatibility_findings(
            resolve_base(base), resolve_adapter(adapter, base), backbone
        )
    table = Table("", "for", "check", "detail")
    for finding in findings:
        answer = "[green]ok[/]" if finding.ok else "[red]no[/]"
        table.add_row(answer, finding.engine, finding.name, escape(finding.detail))
    Console().print(table)
    engines = servable_engines(findings)
    summary = "No engine can serve this: the rows marked `no` say what to do"
    if engines:
        summary = f"Engines that can serve this: {', '.join(engines)}"
    Console().print(summary, highlight=False)
    if not engines:
        raise typer.Exit(1)
