"""The formats that files of preferences have, each told by its columns: the table `FORMATS`.

    records   {"prompt", "responses": [{"text", "scores"}, ...]}   what `pad-vllm score` writes
    ratings   {"prompt" or "instruction", "completions", ...}      UltraFeedback's
    thumbs    {"prompt", "completion", "label"}                    TRL's for KTO
    pairs     {"prompt", "chosen", "rejected"}                     TRL's, texts or lists of messages, which
                                                                   may begin with the prompt instead

In: one row as its file has it. Out: a `ParsedRow` that names the columns which were not read; or a ValueError
or KeyError that says what is wrong. Knows nothing of files, or of how rows become records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pad_vllm.text.common_start import common_start_length
from pad_vllm.text.conversation import Conversation, Message, require_known_roles
from pad_vllm.training.data.parsed_row import (
    EMPTY_ANSWER,
    ParsedRow,
    UnusableRow,
    answer_text,
    known_scores,
    pair_responses,
)
from pad_vllm.training.data.preference_record import PreferenceRecord, Response
from pad_vllm.wording import listed, short_repr

Messages = tuple[Message, ...]


@dataclass(frozen=True)
class RowFormat:
    """One format of rows."""

    parse_row: Callable[[dict[str, Any], tuple[str, ...]], ParsedRow]
    """(row, names of the dimensions) -> what the row says. A score without a name is of the first one."""

    known_by: tuple[str, ...]
    """A row that has one of these columns has this format."""

    columns: tuple[str, ...]
    """The columns that are read; others are kept out of the way."""

    form: str
    """For messages."""


def parse_row_of_any_format(row: dict[str, Any], dimensions: tuple[str, ...]) -> ParsedRow:
    """The row in the first of FORMATS that has one of its columns. Null is as good as no column.

    Args:
        row: column -> value.
        dimensions: the first one is that of scores without a name.

    Raises:
        ValueError: a row of no format, or one that its format does not allow.
        KeyError: a column is missing.
    """
    present = {column for column, value in row.items() if value is not None}
    for row_format in FORMATS.values():
        if present.intersection(row_format.known_by):
            parsed = row_format.parse_row(row, dimensions)
            unread = tuple(column for column in row if column not in row_format.columns)
            return replace(parsed, unread_columns=unread)
    raise ValueError(f"the columns {listed(sorted(row))} are those of no format")


def _record(row: dict[str, Any], _: tuple[str, ...]) -> ParsedRow:
    """A PreferenceRecord; answers without text are left out."""
    columns = {name: row[name] for name in PreferenceRecord.model_fields if name in row}
    fields = _without_null({**columns, "source": None})
    responses = fields["responses"]
    if isinstance(responses, list):
        fields["responses"] = [one for one in responses if not _is_blank_response(one)]
    record = PreferenceRecord.model_validate(fields)
    blank = len(responses) - len(record.responses)
    left_out = (EMPTY_ANSWER,) * blank
    return ParsedRow(
        record.prompt,
        record.responses,
        record.scorers,
        left_out=left_out,
        drawn_by=record.drawn_by,
    )


def _is_blank_response(response: Any) -> bool:
    text = response.get("text", "") if isinstance(response, dict) else response
    return isinstance(text, str) and not text.strip()


def _pair(row: dict[str, Any], dimensions: tuple[str, ...]) -> ParsedRow:
    """A chosen and a rejected answer: texts, or lists of messages, which may begin with the prompt."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list):
        prompt, *answers = _split_chats(_messages(chosen), _messages(rejected), row.get("prompt"))
    elif row.get("prompt") is None:
        raise ValueError(
            "column 'prompt' is missing: only lists of messages can begin with it (texts with Human: and "
            "Assistant: are read by hh-rlhf=PATH)"
        )
    else:
        prompt, answers = _prompt(row["prompt"]), [chosen, rejected]
    texts = [answer_text(a, n) for a, n in zip(answers, ("chosen", "rejected"), strict=True)]
    dimension, scores = row.get("dimension") or dimensions[0], (1.0, 0.0)
    if {"score_chosen", "score_rejected"} <= set(row):
        scores = (_score(row, "score_chosen"), _score(row, "score_rejected"))
    return ParsedRow(prompt, pair_responses(texts[0], texts[1], dimension, scores))


def _split_chats(
    chosen: Messages, rejected: Messages, prompt: Any
) -> tuple[Conversation, str, str]:
    """The prompt, and the answers of two lists of messages.

    Each list is one answer; or the prompt's messages and one answer, as with TRL's implicit prompts.

    Args:
        chosen: messages.
        rejected: messages.
        prompt: the column `prompt`, None where there is none.
    """
    start = min(common_start_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    before = chosen[:start]
    if prompt is not None:
        stated = _prompt(prompt).root
        if before and before[-len(stated) :] != stated:
            raise ValueError("chosen and rejected do not begin with the messages of prompt")
        before = before or stated
    for name, messages in (("chosen", chosen[start:]), ("rejected", rejected[start:])):
        if len(messages) != 1 or messages[0].role != "assistant":
            raise ValueError(
                f"{name} has {len(messages)} messages of {listed(m.role for m in messages)} after what it "
                "shares with the other; one answer of the assistant is accepted"
            )
    if not before:
        raise ValueError(
            "chosen and rejected begin with no common message that could be the prompt"
        )
    return _prompt(before), chosen[-1].content, rejected[-1].content


def _score(row: dict[str, Any], column: str) -> float:
    return float(known_scores({column: row[column]})[column])


def _ratings(row: dict[str, Any], dimensions: tuple[str, ...]) -> ParsedRow:
    """A prompt and its completions: texts and a list of ratings, or objects with text and ratings."""
    prompt = row["instruction"] if row.get("prompt") is None else row["prompt"]
    completions = row["completions"]
    ratings = next((row[name] for name in ("ratings", "scores") if row.get(name) is not None), None)
    if not isinstance(completions, list):
        raise ValueError(f"completions is {short_repr(completions)}; a list is needed")
    if ratings is None:
        ratings = [_ratings_of(completion, dimensions[0]) for completion in completions]
    if not isinstance(ratings, list) or len(ratings) != len(completions):
        raise ValueError(
            f"{len(completions)} completions, and {short_repr(ratings)} as ratings of them"
        )
    responses, left_out = [], []
    for completion, rating in zip(completions, ratings, strict=True):
        named = rating if isinstance(rating, dict) else {dimensions[0]: rating}
        try:
            text = answer_text(_completion_text(completion), "completion")
            responses.append(Response(text=text, scores=known_scores(named)))
        except UnusableRow as error:
            left_out.append(error.reason)
    return ParsedRow(_prompt(prompt), responses, left_out=tuple(left_out))


def _completion_text(completion: Any) -> Any:
    if not isinstance(completion, dict):
        return completion
    return next((completion[n] for n in ("response", "text") if n in completion), None)


def _ratings_of(completion: Any, dimension: str) -> dict[str, Any]:
    """Dimension -> rating of a completion that is an object; "N/A" is as good as null."""
    if not isinstance(completion, dict):
        raise ValueError(
            "completions are texts; a list `ratings` or `scores` is needed beside them"
        )
    named = completion.get("annotations") or {}
    if not named:
        rating = next((completion[n] for n in ("rating", "score") if n in completion), None)
        named = {dimension: rating}
    values = {n: v.get("Rating") if isinstance(v, dict) else v for n, v in named.items()}
    return {name: None if value == "N/A" else value for name, value in values.items()}


def _thumb(row: dict[str, Any], dimensions: tuple[str, ...]) -> ParsedRow:
    """One answer that a user liked (true) or did not like (false)."""
    prompt, completion, label = _prompt(row["prompt"]), row["completion"], row["label"]
    if isinstance(completion, list):
        messages = _messages(completion)
        if len(messages) != 1 or messages[0].role != "assistant":
            raise ValueError(
                f"completion has {len(messages)} messages; one of the assistant is accepted"
            )
        completion = messages[0].content
    text = answer_text(completion, "completion")
    score = known_scores({"label": label})["label"]
    if score not in (0, 1):
        raise ValueError(f"label is {short_repr(label)}; true and false are accepted")
    response = Response(text=text, scores={dimensions[0]: float(score)})
    return ParsedRow(prompt, [response], one_of_several=True)


def _prompt(value: Any) -> Conversation:
    """A text, or messages of which role and content are read."""
    messages = _messages(value) if isinstance(value, list) else value
    return require_known_roles(Conversation.model_validate(messages))


def _messages(value: Sequence[Any]) -> Messages:
    """Role and content of each message; a content of several texts is joined."""
    for message in value:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise ValueError(f'{short_repr(message)} is no message {{"role", "content"}}')
        if message.get("tool_calls"):
            raise ValueError("a message has tool_calls; messages of text are accepted")
    return tuple(Message(role=m["role"], content=_content(m["content"])) for m in value)


def _content(value: Any) -> Any:
    if not isinstance(value, list):
        return "" if value is None else value
    texts = [part.get("text") if isinstance(part, dict) else None for part in value]
    if None in texts:
        raise ValueError(f"content {short_repr(value)} is not only text")
    return "".join(map(str, texts))


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value


FORMATS = {
    "records": RowFormat(
        _record,
        ("responses",),
        (*PreferenceRecord.model_fields,),
        '{"prompt", "responses": [{"text", "scores": {dimension: number}}, ...]}',
    ),
    "ratings": RowFormat(
        _ratings,
        ("completions",),
        ("prompt", "instruction", "completions", "ratings", "scores"),
        '{"prompt" or "instruction", "completions": texts, "ratings": numbers} or UltraFeedback\'s '
        '"completions": [{"response", "annotations"}, ...]',
    ),
    "thumbs": RowFormat(
        _thumb,
        ("completion", "label"),
        ("prompt", "completion", "label"),
        '{"prompt", "completion", "label": true or false}',
    ),
    "pairs": RowFormat(
        _pair,
        ("chosen", "rejected"),
        ("prompt", "chosen", "rejected", "dimension", "score_chosen", "score_rejected"),
        '{"prompt", "chosen", "rejected"}, texts or lists of messages, which may begin with the prompt',
    ),
}
"""Name -> format, in the order in which a row's columns are looked for."""

ACCEPTED_FORMATS = "; ".join(row_format.form for row_format in FORMATS.values())
