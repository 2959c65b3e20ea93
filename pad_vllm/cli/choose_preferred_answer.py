"""`pad-vllm choose`: pairs of answers in, a person's choices between them out; what `pad-vllm fit` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from pad_vllm.cli.error_reporting import report_errors
from pad_vllm.cli.shared_options import JsonLinesOutput

SKIP, STOP = "s", "q"


def choose(
    samples: Annotated[
        Path,
        typer.Argument(metavar="SAMPLES", help="JSONL of `pad-vllm sample --adapter ADAPTER`."),
    ],
    out: JsonLinesOutput,
) -> None:
    """Read two answers at a time, and say which you like better; then `pad-vllm fit` knows your weights.

    Nothing is said of what guided an answer. Prompts that OUT holds are not asked again.
    """
    with report_errors():
        from pad_vllm.training.data import jsonl
        from pad_vllm.training.data.preference_record import PreferenceRecord
        from pad_vllm.training.user_choices import choice_to_line, read_choices

        jsonl.repair_last_line(out)
        known = {_said(choice.prompt) for choice in read_choices(out)}
        records = jsonl.read_lines(samples, PreferenceRecord.model_validate_json)
        said = [(_said([turn.model_dump() for turn in r.prompt]), r) for r in records]
        left = [(prompt, record) for prompt, record in said if prompt not in known]
        made = 0
        with jsonl.line_appender(out) as keep:
            for number, (prompt, record) in enumerate(left, 1):
                first, second = record.responses[:2]
                answer = _asked(f"{number} of {len(left)}", prompt, first.text, second.text)
                if answer == STOP:
                    break
                if answer != SKIP:
                    pair = (first, second) if answer == "1" else (second, first)
                    keep(choice_to_line(record, *pair))
                    made += 1
    typer.echo(f"{out}: {made} choices made, {len(known)} were there before")
    typer.echo(f"Your weights: pad-vllm fit BASE {out} --adapter ADAPTER")


def _said(prompt: list[dict[str, str]]) -> str:
    """All turns of a conversation."""
    return "\n\n".join(turn["content"] for turn in prompt)


def _asked(place: str, prompt: str, first: str, second: str) -> str:
    console = Console()
    console.print(Panel(Text(prompt), title=place))
    for name, text in (("1", first), ("2", second)):
        console.print(Panel(Text(text), title=name, title_align="left"))
    while True:
        answer = str(typer.prompt(f"Better: 1, 2, or {SKIP} to skip, {STOP} to stop")).strip()
        if answer in {"1", "2", SKIP, STOP}:
            return answer
