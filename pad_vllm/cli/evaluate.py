"""`pad-vllm evaluate`: an adapter's held-out figures, once more; with --steering, what it does to answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pad_vllm.catalog.model_downloads import training_cache_dir
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.cli.error_reporting import report_errors
from pad_vllm.cli.shared_options import CacheOption, ChatTemplateOption, chat_template_text
from pad_vllm.cli.steer import (
    DEFAULT_TEMPERATURES,
    Beside,
    BesideBetas,
    Betas,
    Card,
    Engine,
    JudgePrompts,
    Mixes,
    OnTop,
    Out,
    Prompts,
    Teacher,
    Temperatures,
    Tokens,
    Told,
    steer,
)


def evaluate(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="Its folder, or `demo`.")],
    base: Annotated[
        str,
        typer.Option(help="The backbone it was trained on; any base with --steering --engine."),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(help="As for train (default: what the adapter was trained on)."),
    ] = None,
    cache: CacheOption = None,
    unseen: Annotated[
        list[str] | None,
        typer.Option(
            help="A dimension of the data that the adapter does not have: its weights are fitted "
            "from the training prompts' pairs and tried on the held-out ones."
        ),
    ] = None,
    choices: Annotated[
        int, typer.Option(help="Pairs that an unseen dimension is fitted from.")
    ] = 200,
    chat_template: ChatTemplateOption = None,
    steering: Prompts = None,
    judge_prompts: JudgePrompts = None,
    beside: Beside = None,
    beta: Betas = None,
    beside_beta: BesideBetas = None,
    temperature: Temperatures = None,
    tokens: Tokens = 100,
    told: Told = None,
    engine: Engine = "shared",
    mixes: Mixes = True,
    on_top: OnTop = True,
    teacher: Teacher = True,
    card: Card = False,
    out: Out = None,
) -> None:
    """Recompute an adapter's held-out figures, the split being the one it was trained with; or, with
    --steering, measure what guidance does to answers: wins by judges that trained nothing, repetition,
    perplexity, relevance, beside plain prompting and other adapters.
    """
    with report_errors():
        folder, template = Path(resolve_adapter(adapter)), chat_template_text(chat_template)
        if steering is not None:
            steer(
                folder,
                base,
                steering,
                judge_prompts,
                beside or (),
                beta or (),
                beside_beta or (),
                told or (),
                temperature or DEFAULT_TEMPERATURES,
                tokens,
                out,
                engine=engine,
                chat_template=template,
                mixes=mixes,
                on_top=on_top,
                teacher=teacher,
                card=card,
            )
            return
        from pad_vllm.training.report.evaluate_adapter import evaluate_held_out

        kept = cache or training_cache_dir()
        rows = evaluate_held_out(folder, base, data, kept, unseen or [], choices, template)
    Console().print(_table(rows))


def _table(rows: list[dict[str, Any]]) -> Table:
    """angle: to the nearest trained preference. clear: on pairs with a wide margin. reworded: the range
    of prompted over all wordings.
    """
    table = Table()
    table.add_column("preference", no_wrap=True)
    for column in ("angle", "pairs", "trained", "clear", "untrained", "prompted", "reworded"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        wordings = row.get("wordings", [])
        table.add_row(
            row["preference"],
            f"{row['distance']:.0f}°",
            str(row["count"]),
            _share(row, "trained", "pairs", digits=1),
            _share(row, "trained", "clear", digits=1),
            _share(row, "untrained", "pairs", digits=0),
            _share(row, "prompted", "pairs", digits=0),
            f"{min(wordings):.0%}-{max(wordings):.0%}" if wordings else "",
        )
    return table


def _share(row: dict[str, Any], model: str, kind: str, *, digits: int) -> str:
    share = row.get(model, {}).get(kind)
    return "" if share is None else f"{share:.{digits}%}"
