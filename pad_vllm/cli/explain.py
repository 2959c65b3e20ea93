"""`pad-vllm explain`: an answer in colour, by what its tokens earned; in the terminal or as a web page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.cli.error_reporting import report_errors
from pad_vllm.cli.shared_options import sampling_dtype

if TYPE_CHECKING:
    from pad_vllm.guidance_outcome import TokenExplanation

_FULL = 2.0  # logits: a reward of that size has the full colour
_BEFORE = 5  # tokens shown before a change
_CHANGES = 12  # that are listed


def explain(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="Its folder, or `demo`.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the user says.")],
    base: Annotated[str, typer.Option(help="The backbone it was trained on.")],
    weights: Annotated[str, typer.Option(help="As pad_weights: positive=1,simple=0.5")],
    beta: Annotated[
        float | None, typer.Option(help="As pad_beta (default: the adapter's).")
    ] = None,
    answer: Annotated[
        str | None, typer.Option(help="An answer to read (default: the guided base's, greedy).")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Of an answer that is drawn.")] = 80,
    html: Annotated[Path | None, typer.Option(help="A page to write the same to.")] = None,
) -> None:
    """Show what the reward model gives every token of an answer, before strength and guards.

    Green earns more than the base's candidates do on average, red less; underlined is what was not the base's
    own first choice there.
    """
    with report_errors():
        from pad_vllm.steering.token_explanation import ExplanationRequest
        from pad_vllm.steering.token_explanation import explain_answer as explained

        dtype, folder = sampling_dtype(), resolve_adapter(adapter)
        read = explained(
            ExplanationRequest(folder, base, prompt, weights, beta, answer, tokens, dtype)
        )
    console = Console(record=html is not None)
    console.print(explanation_view(read))
    if html is not None:
        console.save_html(str(html))
        typer.echo(f"wrote {html}")


def explanation_view(read: Sequence[TokenExplanation]) -> Group:
    """For a terminal or a page."""
    changed = sum(token["changed"] for token in read)
    mean = sum(_reward(token) for token in read) / max(len(read), 1)
    said = f"{changed} of {len(read)} tokens are not the base's first choice; {mean:+.2f} logits a token"
    return Group(coloured_answer(read), "", said, _changes(read))


def coloured_answer(read: Sequence[TokenExplanation]) -> Text:
    """The answer alone."""
    text = Text()
    for token in read:
        text.append(token["token"], style=_style(token))
    return text


def _reward(token: TokenExplanation) -> float:
    return token["reward"] or 0.0


def _style(token: TokenExplanation) -> str:
    strength = min(abs(_reward(token)) / _FULL, 1.0)
    rest, full = round(255 - 155 * strength), 255 - round(35 * strength)
    colour = f"{rest},{full},{rest}" if _reward(token) > 0 else f"{full},{rest},{rest}"
    return f"black on rgb({colour}){' underline' if token['changed'] else ''}"


def _changes(read: Sequence[TokenExplanation]) -> Table:
    places = [i for i, token in enumerate(read) if token["changed"]]
    table = Table()
    table.add_column("after", ratio=1)
    table.add_column("said")
    table.add_column("the base")
    table.add_column("reward", justify="right")
    for i in places[:_CHANGES]:
        before = "".join(token["token"] for token in read[max(i - _BEFORE, 0) : i])
        cells = (repr(text)[1:-1] for text in (before, read[i]["token"], read[i]["base"] or ""))
        table.add_row(*map(Text, cells), f"{_reward(read[i]):+.2f}")
    return table
