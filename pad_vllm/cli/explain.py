"""`pad-vllm explain`: colours an answer by the reward of each token, in the terminal or as a web page."""

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
from pad_vllm.cli.shared_options import AdapterArgument, BackboneOption, device_dtype
from pad_vllm.cli.terminal_text import shown

if TYPE_CHECKING:
    from pad_vllm.guidance_outcome import TokenExplanation

_FULL_COLOUR = 2.0  # logits: a reward of this size or more has the full colour
_TOKENS_BEFORE = 5  # shown before a changed token
_MAX_ROWS = 12  # of the table of changed tokens


def explain(
    adapter: AdapterArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The user's turn.")],
    base: BackboneOption,
    weights: Annotated[str, typer.Option(help="Weights as in pad_weights: positive=1,simple=0.5")],
    beta: Annotated[float | None, typer.Option(help="Strength (default: the adapter's).")] = None,
    answer: Annotated[
        str | None, typer.Option(help="Answer to explain (default: the guided base's greedy one).")
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer that is drawn.")
    ] = 80,
    html: Annotated[Path | None, typer.Option(help="Also write a web page to this file.")] = None,
) -> None:
    """Show the reward of every token of an answer, before strength and guards.

    Green: a higher reward than the mean of the base's candidates; red: a
    lower one. Underlined: not the base's own first choice.
    """
    with report_errors():
        from pad_vllm.steering.token_explanation import ExplanationRequest, explain_answer

        request = ExplanationRequest(
            adapter=resolve_adapter(adapter),
            base=base,
            prompt=prompt,
            weights=weights,
            beta=beta,
            answer=answer,
            max_tokens=tokens,
            dtype=device_dtype(),
        )
        explained = explain_answer(request)
    console = Console(record=html is not None)
    console.print(explanation_view(explained))
    if html is not None:
        console.save_html(str(html))
        typer.echo(f"wrote {html}")


def explanation_view(tokens: Sequence[TokenExplanation]) -> Group:
    """The coloured answer, a summary and a table of changed tokens, for a terminal or a web page."""
    changed = sum(token["changed"] for token in tokens)
    mean = sum(_reward(token) for token in tokens) / max(len(tokens), 1)
    summary = (
        f"{changed} of {len(tokens)} tokens are not the base's first choice; "
        f"{mean:+.2f} logits a token"
    )
    return Group(coloured_answer(tokens), "", summary, _changed_tokens(tokens))


def coloured_answer(tokens: Sequence[TokenExplanation]) -> Text:
    """The answer with each token coloured by its reward, and changed ones underlined."""
    text = Text()
    for token in tokens:
        text.append(shown(token["token"]), style=_style(token))
    return text


def _reward(token: TokenExplanation) -> float:
    return token["reward"] or 0.0


def _style(token: TokenExplanation) -> str:
    strength = min(abs(_reward(token)) / _FULL_COLOUR, 1.0)
    dim, bright = round(255 - 155 * strength), 255 - round(35 * strength)
    colour = f"{dim},{bright},{dim}" if _reward(token) > 0 else f"{bright},{dim},{dim}"
    return f"black on rgb({colour}){' underline' if token['changed'] else ''}"


def _changed_tokens(tokens: Sequence[TokenExplanation]) -> Table:
    """A row per token that is not the base's first choice: text before it, the token, the base's choice."""
    changed = [index for index, token in enumerate(tokens) if token["changed"]]
    table = Table()
    table.add_column("after", ratio=1)
    table.add_column("token")
    table.add_column("the base's choice")
    table.add_column("reward", justify="right")
    for index in changed[:_MAX_ROWS]:
        token = tokens[index]
        before = "".join(t["token"] for t in tokens[max(index - _TOKENS_BEFORE, 0) : index])
        cells = (repr(text)[1:-1] for text in (before, token["token"], token["base"] or ""))
        table.add_row(*map(Text, cells), f"{_reward(token):+.2f}")
    return table
