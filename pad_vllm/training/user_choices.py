"""Users' choices between two answers: from a JSONL to the differences that their weights are fitted to.

A line is {"prompt": text or messages, "chosen": text, "rejected": text}, and "user": a name, where the file
has choices of several. Where the two answers were guided, the line also has "chosen_weights" and
"rejected_weights" (pad_weights of each, null for an unguided one, both at one strength). The choice is then
one between these weights, and no model has to read the answers:

    P(chosen > other) = sigmoid( v . (w(chosen) - w(other)) )

In: a file, and a PersRM and its tokenizer, or the names of the dimensions. Out: differences by user, and a
WeightFit as JSON. fit_users.py has the regression; torch is imported for it alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from pad_vllm.argument_names import WEIGHTS
from pad_vllm.params import check_argument_syntax, parse_guidance
from pad_vllm.request_limits import RequestLimits
from pad_vllm.text.conversation import Conversation
from pad_vllm.wording import short_repr

if TYPE_CHECKING:
    from torch import Tensor

    from pad_vllm.choices.choice_form import AnswerPairs
    from pad_vllm.choices.fit_weights import WeightFit
    from pad_vllm.persrm import PersRM
    from pad_vllm.training.data.preference_record import PreferenceRecord, Response

CHOICE_FORM = '{"prompt": "...", "chosen": "...", "rejected": "..."}'
GUIDED_CHOICE_FORM = (
    'and, if the answers were guided, "chosen_weights" and "rejected_weights": their pad_weights'
)
_WEIGHTS_KEYS = ("chosen_weights", "rejected_weights")
_USER_KEY = "user"
_MAX_NAME = 256


class UserChoice(NamedTuple):
    """One line: a conversation that ends with the user's message, and the two answers to it."""

    prompt: Conversation
    chosen: str
    rejected: str
    line_number: int
    answer_weights: tuple[Any, Any] | None = None
    """pad_weights that guided the chosen and the rejected answer, None for an unguided one. None in the place
    of both: the line does not say."""

    user: str | None = None
    """Whose choice it is; None: the line does not say."""


def choice_to_line(
    record: PreferenceRecord, chosen: Response, rejected: Response, user: str | None = None
) -> str:
    """A choice between two of a record's responses as a line of JSON, in the form of CHOICE_FORM.

    Args:
        record: the prompt's.
        chosen: the response that the user prefers.
        rejected: the other one.
        user: who prefers it; None: the line does not say.

    Returns:
        The line, with the pad_weights of both responses if either was guided.
    """
    line: dict[str, Any] = {} if user is None else {_USER_KEY: user}
    line["prompt"] = record.prompt.messages()
    line |= {"chosen": chosen.text, "rejected": rejected.text}
    weights = [response.guided_by.get(WEIGHTS) for response in (chosen, rejected)]
    if any(weights):
        line |= dict(zip(_WEIGHTS_KEYS, weights, strict=True))
    return json.dumps(line, ensure_ascii=False)


def read_choices(path: Path) -> list[UserChoice]:
    """The choice of every line. Raises ValueError, with file and line, for the first line that is none."""
    # Not splitlines(), which also splits at U+2028 and the like inside a JSON string.
    with path.open(encoding="utf-8") as file:
        return [_choice(path, n, line) for n, line in enumerate(file, 1) if line.strip()]


def _choice(path: Path, number: int, line: str) -> UserChoice:
    try:
        return _parse_choice(json.loads(line), number)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} line {number}: {error}. Accepted: {CHOICE_FORM}, {GUIDED_CHOICE_FORM}. Correct or "
            "drop the line."
        ) from None


def _parse_choice(fields: Any, line_number: int) -> UserChoice:
    """The choice of a parsed line. Keys that are none of a choice are ignored."""
    if not isinstance(fields, dict):
        raise ValueError(f"{short_repr(fields)} is no JSON object")
    for name in ("prompt", "chosen", "rejected"):
        if name not in fields:
            raise ValueError(f"{name} is missing")
    chosen, rejected = fields["chosen"], fields["rejected"]
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} is {short_repr(text)}, not an answer's text")
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same text, which is no choice")
    prompt = _parse_prompt(fields["prompt"])
    user = require_user_name(fields[_USER_KEY]) if _USER_KEY in fields else None
    _require_unicode([chosen, rejected, user or "", *(message.content for message in prompt)])
    return UserChoice(prompt, chosen, rejected, line_number, _answer_weights(fields), user)


def require_user_name(user: Any) -> str:
    """The name itself. Raises ValueError for what is none."""
    if not isinstance(user, str) or not user.strip() or len(user) > _MAX_NAME:
        raise ValueError(
            f"user is {short_repr(user)}, not a name: text of 1 to {_MAX_NAME} characters"
        )
    return user


def choices_by_user(choices: Sequence[UserChoice]) -> dict[str | None, list[UserChoice]]:
    """The choices of each user, in the order of their first ones; None: of a file that names no user.

    Raises ValueError if some lines name a user and others do not.
    """
    by_user: dict[str | None, list[UserChoice]] = {}
    for choice in choices:
        by_user.setdefault(choice.user, []).append(choice)
    if None in by_user and len(by_user) > 1:
        named = next(rows[0].line_number for user, rows in by_user.items() if user is not None)
        raise ValueError(
            f"line {named} names a user and line {by_user[None][0].line_number} does not; accepted: all "
            "lines or none, since choices of different users are fitted apart. Add the user's name"
        )
    return by_user


def _parse_prompt(prompt: Any) -> Conversation:
    try:
        conversation = Conversation.model_validate(prompt)
        ends_with_user = conversation[-1].role == "user"
    except ValidationError:
        ends_with_user = False
    if not ends_with_user:
        raise ValueError(
            f"prompt is {short_repr(prompt)}, neither text nor a list of "
            '{"role": "...", "content": "..."} that ends with a turn of the user'
        )
    return conversation


def _require_unicode(texts: list[str]) -> None:
    """JSON can carry half a character, which no tokenizer takes."""
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{short_repr(text)} holds a lone surrogate, which is no character")


def _answer_weights(fields: dict[str, Any]) -> tuple[Any, Any] | None:
    """The pad_weights that guided the two answers, where the line says so."""
    present = [name for name in _WEIGHTS_KEYS if name in fields]
    if len(present) == 1:
        raise ValueError(f"{present[0]} is there alone")
    for name in present:
        if fields[name] is not None:
            check_argument_syntax({WEIGHTS: fields[name]})
    return (fields[_WEIGHTS_KEYS[0]], fields[_WEIGHTS_KEYS[1]]) if present else None


def answers_were_guided(choices: Sequence[UserChoice]) -> bool:
    """Whether the choices are between guided answers. Raises ValueError if only some of them are."""
    with_weights = [c.line_number for c in choices if c.answer_weights is not None]
    if with_weights and len(with_weights) < len(choices):
        without = next(c.line_number for c in choices if c.answer_weights is None)
        raise ValueError(
            f"line {with_weights[0]} says what guided its answers and line {without} does not; "
            "accepted: all lines or none. Fit the two kinds apart."
        )
    return bool(with_weights)


def guided_differences(choices: Sequence[UserChoice], dimensions: tuple[str, ...]) -> Tensor:
    """Weights of the chosen answers less those of the others; no model is run.

    Args:
        choices: N, with the weights of both answers.
        dimensions: names of the adapter's D dimensions.

    Returns:
        [N, D] float64.

    Raises:
        ValueError: weights name a dimension that the adapter does not have.
    """
    import torch

    limits = RequestLimits(dimensions, beta=1.0, top_k=1, max_beta=1.0, max_top_k=1)
    pairs = [
        [_weight_vector(choice, weights, limits) for weights in choice.answer_weights or ()]
        for choice in choices
    ]
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    return chosen - rejected


def _weight_vector(choice: UserChoice, weights: Any, limits: RequestLimits) -> tuple[float, ...]:
    """D weights of one answer; zeros for an unguided one."""
    try:
        guidance = None if weights is None else parse_guidance({WEIGHTS: weights}, limits)
    except ValueError as error:  # a name that the adapter does not have
        raise ValueError(f"line {choice.line_number}: {error}") from None
    return (0.0,) * len(limits.dimensions) if guidance is None else guidance.weights


def read_answers(model: PersRM, tokenizer: Any, choices: Sequence[UserChoice]) -> AnswerPairs:
    """The PersRM's features of both answers of each choice.

    Args:
        model: the adapter on its base.
        tokenizer: the base's, with a chat template.
        choices: between any answers.

    Raises:
        ValueError: a line that is too long for the base or that its chat template refuses.
    """
    import torch

    from pad_vllm.choices.answer_sequences import answer_sequences, context_tokens
    from pad_vllm.choices.choice_form import AnswerPairs
    from pad_vllm.choices.feature_sums import feature_sums

    max_tokens, sequences = context_tokens(model.backbone), []
    for choice in choices:
        answers = (choice.chosen, choice.rejected)
        try:
            sequences += answer_sequences(tokenizer, choice.prompt, answers, max_tokens)
        except ValueError as error:
            raise ValueError(
                f"line {choice.line_number}: {error}. Shorten or drop the line."
            ) from error
    lengths = torch.tensor([max(len(answer), 1) for _, answer in sequences])
    sums = feature_sums(model, sequences)
    return AnswerPairs(sums.unflatten(0, (-1, 2)), lengths.unflatten(0, (-1, 2)))


def fit_to_json(fitted: WeightFit, dimensions: Sequence[str]) -> dict[str, Any]:
    """The fit as plain JSON; null in the place of an infinite bound of an interval."""
    rows = zip(
        dimensions, fitted.w.tolist(), fitted.interval.tolist(), fitted.excludes_zero, strict=True
    )
    return {
        "pad_weights": fitted.pad_weights(dimensions),
        "dimensions": {
            name: {
                "w": w,
                "interval": [bound if math.isfinite(bound) else None for bound in bounds],
                "clear": excludes_zero,
            }
            for name, w, bounds, excludes_zero in rows
        },
        "scale": fitted.scale,
        "choices": fitted.choices,
        "accuracy": fitted.accuracy,
        "cross_validated": fitted.cross_validated,
        "baseline": fitted.baseline,
    }
