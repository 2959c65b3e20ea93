"""One user's choices between two answers, from a JSONL to the fit of their weights.

A line is {"prompt": text or messages, "chosen": text, "rejected": text}. Where the two answers were guided,
by "chosen_weights" and "rejected_weights" (pad_weights of each, null for an unguided one, at one strength),
the choice is one between these, and nobody has to read the answers:

    P(chosen > other) = sigmoid( v . (w(chosen) - w(other)) )

In: a file, and a PersRM and its tokenizer, or the names of the dimensions. Out: a Fit, also as JSON. fit.py
knows the regression; torch is imported for it alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pad_vllm.params import WEIGHTS, RequestLimits, check_argument_syntax, parse_guidance
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.wording import short_repr

if TYPE_CHECKING:
    from pad_vllm.persrm import PersRM
    from pad_vllm.training.data.preference_record import PreferenceRecord, Response
    from pad_vllm.training.fit_weights import WeightFit

CHOICE_FORM = '{"prompt": "...", "chosen": "...", "rejected": "..."}'
GUIDED_CHOICE_FORM = (
    '"chosen_weights" and "rejected_weights" beside them where these pad_weights guided the answers'
)
_KEYS = ("chosen_weights", "rejected_weights")


def choice_to_line(record: PreferenceRecord, chosen: Response, rejected: Response) -> str:
    """A choice between two of a record's responses, as FORM, with what guided them where either was."""
    line: dict[str, Any] = {"prompt": [turn.model_dump() for turn in record.prompt]}
    line |= {"chosen": chosen.text, "rejected": rejected.text}
    guides = [one.guided_by.get(WEIGHTS) for one in (chosen, rejected)]
    if any(guides):
        line |= dict(zip(_KEYS, guides, strict=True))
    return json.dumps(line, ensure_ascii=False)


class UserChoice(NamedTuple):
    """One line: a conversation that ends with the user's turn, and the two answers to it."""

    prompt: list[dict[str, str]]
    chosen: str
    rejected: str
    line_number: int
    answer_weights: tuple[Any, Any] | None = None
    """pad_weights that guided the chosen and the rejected one, None for an unguided one; None: not told."""


def read_choices(path: Path) -> list[UserChoice]:
    """Every line's choice; ValueError names the first line that is none."""
    # Not splitlines(), which also splits at U+2028 and the like inside a JSON string.
    with path.open(encoding="utf-8") as file:
        return [_choice(path, n, line) for n, line in enumerate(file, 1) if line.strip()]


def _choice(path: Path, number: int, line: str) -> UserChoice:
    try:
        raw = json.loads(line)
        prompt, chosen, rejected = _fields(raw)
        _require_unicode([chosen, rejected, *(turn["content"] for turn in prompt)])
        weights = _guides(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} line {number}: {error}. Accepted: {CHOICE_FORM}, {GUIDED_CHOICE_FORM}. Correct or drop the line."
        ) from None
    return UserChoice(prompt, chosen, rejected, number, weights)


def _fields(raw: Any) -> tuple[list[dict[str, str]], str, str]:
    """Prompt and answers of a parsed line; other keys are ignored."""
    if not isinstance(raw, dict):
        raise ValueError(f"{short_repr(raw)} is no JSON object")
    for name in ("prompt", "chosen", "rejected"):
        if name not in raw:
            raise ValueError(f"{name} is missing")
    for name in ("chosen", "rejected"):
        if not isinstance(raw[name], str) or not raw[name].strip():
            raise ValueError(f"{name} is {short_repr(raw[name])}, not an answer's text")
    if raw["chosen"] == raw["rejected"]:
        raise ValueError("chosen and rejected are the same text, which is no choice")
    return _conversation(raw["prompt"]), raw["chosen"], raw["rejected"]


def _guides(raw: dict[str, Any]) -> tuple[Any, Any] | None:
    """What guided the two answers, where the line says so."""
    given = [name for name in _KEYS if name in raw]
    if len(given) == 1:
        raise ValueError(f"{given[0]} is there alone")
    for name in given:
        if raw[name] is not None:
            check_argument_syntax({WEIGHTS: raw[name]})
    return (raw[_KEYS[0]], raw[_KEYS[1]]) if given else None


def _require_unicode(texts: list[str]) -> None:
    """JSON can carry half a character, which no tokenizer takes."""
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{short_repr(text)} holds a lone surrogate, which is no character")


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
            f"prompt is {short_repr(prompt)}, neither text nor a list of "
            '{"role": "...", "content": "..."} that ends with a turn of the user'
        )
    return list(turns)


def answers_were_guided(choices: Sequence[UserChoice]) -> bool:
    """Whether they are between guided answers; ValueError where some are and some are not."""
    told = [choice.line_number for choice in choices if choice.answer_weights is not None]
    if told and len(told) < len(choices):
        untold = next(choice.line_number for choice in choices if choice.answer_weights is None)
        raise ValueError(
            f"line {told[0]} says what guided its answers and line {untold} does not; accepted: all "
            "lines or none. Fit the two kinds apart."
        )
    return bool(told)


def fit_guided_choices(
    choices: Sequence[UserChoice], dimensions: tuple[str, ...], *, strength: float = 1.0
) -> WeightFit:
    """The fit of choices between guided answers; no model is asked."""
    import torch

    from pad_vllm.training.fit_weights import fit_weights

    limits = RequestLimits(dimensions, beta=1.0, top_k=1, max_beta=1.0, max_top_k=1)
    pairs = [
        [_w(choice, value, limits) for value in choice.answer_weights or ()] for choice in choices
    ]
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    return fit_weights(chosen - rejected, strength=strength)


def _w(choice: UserChoice, value: Any, limits: RequestLimits) -> tuple[float, ...]:
    try:
        given = None if value is None else parse_guidance({WEIGHTS: value}, limits)
    except ValueError as error:  # a name that the adapter does not have
        raise ValueError(f"line {choice.line_number}: {error}") from None
    return (0.0,) * len(limits.dimensions) if given is None else given.weights


def fit_choices(
    model: PersRM, tokenizer: Any, choices: list[UserChoice], *, strength: float = 1.0
) -> WeightFit:
    """The fit of `choices`, tokenised as the base's chat template has them."""
    from pad_vllm.training.fit_weights import MIN_CHOICES, feature_sums, fit_weights

    if len(choices) < MIN_CHOICES:
        raise ValueError(f"{len(choices)} choices; accepted: at least {MIN_CHOICES}. Add lines.")
    limit = getattr(model.backbone.config, "max_position_embeddings", math.inf)
    sequences = []
    for choice in choices:
        prompt = _prompt_ids(tokenizer, choice)
        # With the end-of-sequence token, as training's samples have it: where to end is part of the choice.
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        for answer in (choice.chosen, choice.rejected):
            response = [*_ids(tokenizer, answer), *end]
            if len(prompt) + len(response) > limit:
                raise ValueError(
                    f"line {choice.line_number} has {len(prompt) + len(response)} tokens; this base "
                    f"accepts {limit}. Shorten or drop the line."
                )
            sequences.append((prompt, response))
    sums = feature_sums(model, sequences)
    return fit_weights(sums[0::2] - sums[1::2], strength=strength)


def _prompt_ids(tokenizer: Any, choice: UserChoice) -> list[int]:
    from jinja2 import TemplateError

    try:
        return chat_token_ids(tokenizer, choice.prompt)
    except TemplateError as error:  # such as a system turn for a model that knows none
        raise ValueError(
            f"line {choice.line_number}: the chat template refuses the prompt ({error}). Reword or drop the "
            "line."
        ) from error


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def fit_to_json(fitted: WeightFit, dimensions: Sequence[str]) -> dict[str, Any]:
    """The fit as plain JSON; an interval without a bound has null."""
    rows = zip(
        dimensions, fitted.w.tolist(), fitted.interval.tolist(), fitted.excludes_zero, strict=True
    )
    return {
        "pad_weights": fitted.pad_weights(dimensions),
        "dimensions": {
            name: {
                "w": w,
                "interval": [bound if math.isfinite(bound) else None for bound in bounds],
                "clear": clear,
            }
            for name, w, bounds, clear in rows
        },
        "scale": fitted.scale,
        "choices": fitted.choices,
        "accuracy": fitted.accuracy,
        "cross_validated": fitted.cross_validated,
        "baseline": fitted.baseline,
    }
