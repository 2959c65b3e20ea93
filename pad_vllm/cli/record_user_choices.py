"""`pad-vllm choose`: shows two answers at a time and writes which one the user prefers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.panel import Panel

from pad_vllm.cli.error_reporting import report_errors
from pad_vllm.cli.shared_options import JsonLinesOutput
from pad_vllm.cli.terminal_text import terminal_text

if TYPE_CHECKING:
    from pad_vllm.text.conversation import Conversation
    from pad_vllm.training.user_choices import UserChoice

SKIP, STOP = "s", "q"


def choose(
    samples: Annotated[
        Path,
        typer.Argument(
            metavar="SAMPLES", help="JSONL that `pad-vllm sample --adapter ADAPTER` wrote."
        ),
    ],
    out: JsonLinesOutput,
    user: Annotated[
        str | None,
        typer.Option(
            help="Who chooses, where OUT is to hold choices of several: each is asked all."
        ),
    ] = None,
) -> None:
    """Read two answers at a time and type which one is better; `pad-vllm fit` learns your weights from OUT.

    The weights that guided an answer are not shown. Prompts that OUT holds are not asked again.
    """
    with report_errors():
        from pad_vllm.training.data import jsonl
        from pad_vllm.training.user_choices import choice_to_line, require_user_name

        jsonl.repair_last_line(out)
        if user is not None:
            require_user_name(user)
        done = {_text(choice.prompt) for choice in _choices_of(user, out)}
        records = [r for r in jsonl.read_records(samples) if _text(r.prompt) not in done]
        num_choices = 0
        with jsonl.line_appender(out) as append:
            for number, record in enumerate(records, 1):
                first, second = record.responses[:2]
                title = f"{number} of {len(records)}"
                answer = _ask(title, _text(record.prompt), first.text, second.text)
                if answer == STOP:
                    break
                if answer != SKIP:
                    chosen, rejected = (first, second) if answer == "1" else (second, first)
                    append(choice_to_line(record, chosen, rejected, user))
                    num_choices += 1
    typer.echo(f"{out}: {num_choices} choices made, {len(done)} were there before")
    typer.echo(f"Your weights: pad-vllm fit BASE {out} --adapter ADAPTER")


def _choices_of(user: str | None, out: Path) -> list[UserChoice]:
    """The user's choices that OUT holds. Raises ValueError if only some choices there would have a user."""
    from pad_vllm.training.user_choices import choices_by_user, read_choices

    by_user = choices_by_user(read_choices(out))
    if by_user and (user is None) != (None in by_user):
        says = "do not say whose they are" if user else "say whose they are"
        raise ValueError(
            f"{out}: its choices {says}; accepted: all with --user or none. Give another --out, or "
            f"{'leave --user out' if user else 'name yours: --user NAME'}"
        )
    return by_user.get(user, [])


def _text(prompt: Conversation) -> str:
    """All messages of a conversation, as they are shown."""
    return "\n\n".join(message.content for message in prompt)


def _ask(title: str, prompt: str, first: str, second: str) -> str:
    """Show a prompt and two answers; "1", "2", SKIP or STOP, as typed."""
    console = Console()
    console.print(Panel(terminal_text(prompt), title=title))
    for name, text in (("1", first), ("2", second)):
        console.print(Panel(terminal_text(text), title=name, title_align="left"))
    while True:
        answer = str(typer.prompt(f"Better: 1, 2, or {SKIP} to skip, {STOP} to stop")).strip()
        if answer in {"1", "2", SKIP, STOP}:
            return answer
