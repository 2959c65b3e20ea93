"""`pad-vllm merge-lora`: the checkpoint on which an adapter for requests under a LoRA is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pad_vllm.cli.error_reporting import report_errors, require_package
from pad_vllm.cli.shared_options import BaseArgument


def merge_lora(
    base: BaseArgument,
    lora: Annotated[
        Path, typer.Argument(metavar="LORA", help="Folder of a LoRA of BASE, as PEFT writes it.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint.")],
) -> None:
    """Merge a LoRA into BASE, to train an adapter for requests under that LoRA.

    Train the adapter on the new checkpoint: BASE, served with --enable-lora, guides requests under the LoRA
    by it.
    """
    with report_errors():
        require_package("peft")
        from pad_vllm.opened_base import base_folder
        from pad_vllm.training.merged_base import merge_lora as merge

        name = None if Path(base).is_dir() else base
        merged = merge(base_folder(base), lora, out, base_name=name)
        typer.echo(
            f"wrote {out}: {merged.base} with the LoRA {merged.lora} ({merged.lora_fingerprint})"
        )
