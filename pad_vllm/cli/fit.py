"""`pad-vllm fit`: a file of choices in, `pad_weights` to paste into requests out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.cli.error_reporting import report_errors, require_package
from pad_vllm.cli.shared_options import (
    AdapterOption,
    BaseArgument,
    ChatTemplateOption,
    chat_template_text,
)
from pad_vllm.training.user_choices import (
    CHOICE_FORM,
    GUIDED_CHOICE_FORM,
    answers_were_guided,
    fit_choices,
    fit_guided_choices,
    fit_to_json,
    read_choices,
)

if TYPE_CHECKING:
    from pad_vllm.persrm import PersRM
    from pad_vllm.training.fit_weights import WeightFit


_UNGUIDED_WARNING = (
    "CHOICES does not say what guided the answers. In our measurements, weights fitted to choices between "
    "unguided answers predicted simulated users' tastes no better than chance; `pad-vllm sample --adapter` "
    "and `pad-vllm choose` make pairs that carry more information."
)


def fit(
    base: BaseArgument,
    choices: Annotated[
        Path,
        typer.Argument(metavar="CHOICES", help=f"JSONL of {CHOICE_FORM}, {GUIDED_CHOICE_FORM}."),
    ],
    adapter: AdapterOption,
    strength: Annotated[
        float,
        typer.Option(
            help="How strongly the prior pulls weights towards 0; use more for fewer choices."
        ),
    ] = 1.0,
    out: Annotated[Path | None, typer.Option(help="File to write the result to, as JSON.")] = None,
    chat_template: ChatTemplateOption = None,
) -> None:
    """Learn one user's pad_weights from their CHOICES between two answers.

    Few choices suffice where both answers were guided, each by other weights (`pad-vllm sample --adapter`,
    `pad-vllm choose`); BASE is not loaded for those.
    """
    with report_errors():
        require_package("peft")
        user_choices = read_choices(choices)
        folder = resolve_adapter(adapter)
        dimensions = read_config(folder).dimensions
        if answers_were_guided(user_choices):
            fitted = fit_guided_choices(user_choices, dimensions, strength=strength)
        else:
            model, tokenizer = _load_model(base, folder, chat_template_text(chat_template))
            fitted = fit_choices(model, tokenizer, user_choices, strength=strength)
            typer.echo(_UNGUIDED_WARNING, err=True)
        _print_fit(fitted, dimensions)
        if out is not None:
            result = {"adapter": adapter, "base": base, "strength": strength}
            result |= fit_to_json(fitted, dimensions)
            out.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", "utf-8")


def _load_model(base: str, folder: str, template: str | None) -> tuple[PersRM, Any]:
    """The adapter in `folder` on its base, and the base's tokenizer. Warns of another base."""
    from pad_vllm.adapter.adapter_folder import load_adapter
    from pad_vllm.adapter.backbone.backbone import Backbone, require_same_backbone
    from pad_vllm.opened_base import open_base
    from pad_vllm.persrm import PersRM

    adapter = load_adapter(folder)
    backbone, tokenizer, checkpoint = open_base(
        base, chat_template=template or adapter.config.chat_template
    )
    served = Backbone.from_checkpoint(checkpoint)
    # A mismatch only warns: weights for a quantised copy may be fitted on the original model.
    for warning in require_same_backbone(adapter.config.backbone, served, allow_mismatch=True):
        Console(stderr=True).print(f"[yellow]Warning:[/yellow] {escape(warning)}", soft_wrap=True)
    return PersRM.from_adapter(backbone, adapter).to(backbone.device), tokenizer


def _print_fit(fitted: WeightFit, dimensions: Sequence[str]) -> None:
    table = Table("dimension", "w", "95% interval", "note")
    rows = zip(
        dimensions, fitted.w.tolist(), fitted.interval.tolist(), fitted.excludes_zero, strict=True
    )
    for name, w, (low, high), excludes_zero in rows:
        note = "" if excludes_zero else "sign not clear from these choices"
        table.add_row(escape(name), f"{w:+.2f}", f"{low:+.2f} to {high:+.2f}", note)
    console = Console()
    console.print(table)
    console.print(
        f"{fitted.choices} choices. The weights predict {fitted.accuracy:.0%} of them; of choices left out "
        f"of the fit {fitted.cross_validated:.0%}, the best single dimension {fitted.baseline:.0%}.",
        highlight=False,
    )
    typer.echo(f'pad_weights: "{fitted.pad_weights(dimensions)}"')
