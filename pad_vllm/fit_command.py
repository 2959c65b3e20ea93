"""`pad-vllm fit`: a file of choices in, `pad_weights` to paste out.

A line of the file is {"prompt": text or messages, "chosen": text, "rejected": text}. It knows files,
tokenizers and the terminal; `fit.py` knows the rest. Importing it imports neither torch nor pydantic.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pad_vllm.serve import resolve_adapter, resolve_base
from pad_vllm.wording import show

if TYPE_CHECKING:
    from pad_vllm.fit import Fit
    from pad_vllm.persrm import PersRM

_FORM = '{"prompt": "...", "chosen": "...", "rejected": "..."}'


class Choice(NamedTuple):
    """One line: a conversation that ends with the user's turn, and the two answers to it."""

    prompt: list[dict[str, str]]
    chosen: str
    rejected: str
    line: int


def fit_command(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="A name of `pad-vllm models`, a folder, or a model's hub name."
        ),
    ],
    choices: Annotated[Path, typer.Argument(metavar="CHOICES", help=f"JSONL of {_FORM}.")],
    adapter: Annotated[str, typer.Option(help="Folder of a PAD adapter, or `demo`.")],
    strength: Annotated[
        float, typer.Option(help="How strongly weights are held near 0; more for fewer choices.")
    ] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Write the result as JSON, too.")] = None,
) -> None:
    """Learn one user's pad_weights from their CHOICES between two answers."""
    from pad_vllm.cli import plain_errors  # cli.py imports this module

    with plain_errors():
        read = read_choices(choices)
        model, tokenizer = _open(resolve_base(base), resolve_adapter(adapter))
        found = learn(model, tokenizer, read, strength=strength)
        _print(found, model.dimensions)
        if out is not None:
            result = {"adapter": adapter, "base": base, "strength": strength}
            result |= as_json(found, model.dimensions)
            out.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", "utf-8")


def read_choices(path: Path) -> list[Choice]:
    """Every line's choice; ValueError names the first line that is none."""
    # Not splitlines(): a JSON string may hold line separators that are none of the file's.
    with path.open(encoding="utf-8") as file:
        return [_choice(path, n, line) for n, line in enumerate(file, 1) if line.strip()]


def _choice(path: Path, number: int, line: str) -> Choice:
    try:
        raw = json.loads(line)
        prompt, chosen, rejected = _fields(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} line {number}: {error}. Accepted: {_FORM}. Correct or drop the line."
        ) from None
    return Choice(prompt, chosen, rejected, number)


def _fields(raw: Any) -> tuple[list[dict[str, str]], str, str]:
    """Prompt and answers of a parsed line; keys beyond these are the user's own affair."""
    if not isinstance(raw, dict):
        raise ValueError(f"{show(raw)} is no JSON object")
    for name in ("prompt", "chosen", "rejected"):
        if name not in raw:
            raise ValueError(f"{name} is missing")
    for name in ("chosen", "rejected"):
        if not isinstance(raw[name], str) or not raw[name].strip():
            raise ValueError(f"{name} is {show(raw[name])}, not an answer's text")
    if raw["chosen"] == raw["rejected"]:
        raise ValueError("chosen and rejected are the same text, which is no choice")
    return _conversation(raw["prompt"]), raw["chosen"], raw["rejected"]


def _conversation(prompt: Any) -> list[dict[str, str]]:
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    sound = isinstance(turns, list) and all(
        isinstance(turn, dict)
        and set(turn) == {"role", "content"}
        and all(isinstance(value, str) for value in turn.values())
        for turn in turns
    )
    if not sound or not turns or turns[-1]["role"] != "user":
        raise ValueError(
            f"prompt is {show(prompt)}, neither text nor a list of "
            '{"role": "...", "content": "..."} that ends with a turn of the user'
        )
    return list(turns)


def learn(model: PersRM, tokenizer: Any, choices: list[Choice], *, strength: float = 1.0) -> Fit:
    """The fit of `choices`, tokenised as the base's chat template has them."""
    from pad_vllm.fit import LEAST, feature_sums, fit
    from pad_vllm.training.chat import chat_ids

    if len(choices) < LEAST:
        raise ValueError(f"{len(choices)} choices; accepted: at least {LEAST}. Add lines.")
    limit = getattr(model.backbone.config, "max_position_embeddings", math.inf)
    sequences = []
    for choice in choices:
        prompt = chat_ids(tokenizer, choice.prompt)
        # With its end, as the samples of training have it: when to stop is a choice as well.
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        for answer in (choice.chosen, choice.rejected):
            response = [*_ids(tokenizer, answer), *end]
            if len(prompt) + len(response) > limit:
                raise ValueError(
                    f"line {choice.line} has {len(prompt) + len(response)} tokens; this base "
                    f"accepts {limit}. Shorten or drop the line."
                )
            sequences.append((prompt, response))
    sums = feature_sums(model, sequences)
    return fit(sums[0::2] - sums[1::2], strength=strength)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _open(base: str, folder: str) -> tuple[PersRM, Any]:
    if importlib.util.find_spec("peft") is None:
        raise ValueError("PEFT cannot be imported. Install it: pip install 'pad-vllm[train]'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pad_vllm.adapter import Backbone, load, require_backbone
    from pad_vllm.fingerprint import local_checkpoint
    from pad_vllm.persrm import PersRM

    adapter = load(folder)
    backbone = AutoModelForCausalLM.from_pretrained(base)
    checkpoint = local_checkpoint(base)
    served = (
        Backbone.from_hf_config(backbone.config, name=base)
        if checkpoint is None
        else Backbone.from_checkpoint(checkpoint)
    )
    # Weights for a quantised copy may well be fitted on the model it was made of.
    for warning in require_backbone(adapter.config, served, allow_mismatch=True):
        Console(stderr=True).print(f"[yellow]Warning:[/yellow] {escape(warning)}", soft_wrap=True)
    model = PersRM.from_adapter(backbone, adapter)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device), AutoTokenizer.from_pretrained(base)


def _print(found: Fit, dimensions: Sequence[str]) -> None:
    table = Table("dimension", "w", "95% interval", "note")
    rows = zip(dimensions, found.w.tolist(), found.interval.tolist(), found.clear, strict=True)
    for name, w, (low, high), clear in rows:
        note = "" if clear else "may be 0: these choices do not tell"
        table.add_row(escape(name), f"{w:+.2f}", f"{low:+.2f} to {high:+.2f}", note)
    console = Console()
    console.print(table)
    console.print(
        f"{found.choices} choices. Told rightly: {found.accuracy:.0%} of them; when left out of the "
        f"fit {found.cross_validated:.0%}, by the best single dimension {found.baseline:.0%}.",
        highlight=False,
    )
    typer.echo(f'pad_weights: "{found.weights(dimensions)}"')


def as_json(found: Fit, dimensions: Sequence[str]) -> dict[str, Any]:
    """The fit as plain JSON; an interval without a bound has null."""
    rows = zip(dimensions, found.w.tolist(), found.interval.tolist(), found.clear, strict=True)
    return {
        "pad_weights": found.weights(dimensions),
        "dimensions": {
            name: {
                "w": w,
                "interval": [bound if math.isfinite(bound) else None for bound in bounds],
                "clear": clear,
            }
            for name, w, bounds, clear in rows
        },
        "scale": found.scale,
        "choices": found.choices,
        "accuracy": found.accuracy,
        "cross_validated": found.cross_validated,
        "baseline": found.baseline,
    }
