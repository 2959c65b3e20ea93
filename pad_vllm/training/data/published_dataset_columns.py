"""What each published preference data set calls its columns: the table `SOURCES`.

In: one row as its file has it. Out: a `ParsedRow`; or a ValueError or KeyError that says what is malformed.
Knows nothing of files, or of how rows become records.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pad_vllm.text.conversation import Conversation, Message
from pad_vllm.training.data.preference_record import PreferenceRecord, Response
from pad_vllm.wording import listed, short_repr


@dataclass(frozen=True)
class ParsedRow:
    """What one row says, before rows of one prompt are joined and duplicates are dropped."""

    prompt: Conversation
    responses: list[Response]
    scorers: Mapping[str, str] = field(default_factory=dict)
    """Dimension -> the scorer that made its scores."""


@dataclass(frozen=True)
class SourceFormat:
    """Where a data set is published, and how one of its rows is read."""

    parse_row: Callable[[dict[str, Any], tuple[str, ...]], ParsedRow]
    """(row, names of the dimensions) -> what the row says. Raises ValueError or KeyError if malformed."""

    dimensions: tuple[str, ...]
    """Names of the dimensions where the spec gives none."""

    hub_name: str | None = None
    """None: the data set is not on the hub, and a spec needs a path."""

    subfolder_of: Mapping[str, str] = field(default_factory=dict)
    """First dimension of the spec -> the folder of the hub's repository that holds its rows."""

    split: str = "train"
    max_dimension_names: int = 0
    """How many dimensions a spec may name; 0: the data names them itself."""

    join_rows: Literal["no", "next", "all"] = "no"
    """Which rows with the same prompt become one record: none, adjacent ones, or all of the file."""


def _text(row: dict[str, Any], column: str) -> str:
    if not isinstance(row[column], str) or not row[column].strip():
        raise ValueError(f"{column} is {short_repr(row[column])}; text is needed")
    return str(row[column])


def _split_turns(text: str, marker: str) -> tuple[Message, ...]:
    """The messages of a flattened conversation. marker: a regular expression with the role as its group."""
    before, *parts = re.split(marker, text)
    roles = ["assistant" if role == "Assistant" else "user" for role in parts[::2]]
    alternating = [("user", "assistant")[position % 2] for position in range(len(roles))]
    if before.strip() or not roles or roles != alternating:
        raise ValueError(
            f"the turns must alternate and begin with the user's, not be {short_repr(text)}"
        )
    return tuple(
        Message(role=role, content=content.strip())
        for role, content in zip(roles, parts[1::2], strict=True)
    )


def _pair_responses(chosen: str, rejected: str, dimension: str) -> list[Response]:
    return [
        Response(text=chosen, scores={dimension: 1.0}),
        Response(text=rejected, scores={dimension: 0.0}),
    ]


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value


def _helpsteer2(row: dict[str, Any], dimensions: tuple[str, ...]) -> ParsedRow:
    """nvidia/HelpSteer2: a response a row, scored 0 to 4; later turns of a prompt follow markers."""
    text = "<extra_id_1>User\n" + _text(row, "prompt")
    scores = {name: row[name] for name in dimensions}
    turns = _split_turns(text, r"\s*<extra_id_1>(User|Assistant)\n")
    response = Response(text=_text(row, "response"), scores=scores)
    return ParsedRow(Conversation(turns), [response])


def _ric(row: dict[str, Any], dimensions: tuple[str, ...]) -> ParsedRow:
    r"""Rewards-in-Context (arXiv 2402.10207): a response a row, scored by reward models.

    RiC publishes the script, not its output. This reads the columns that ric/prepare_dataset_with_rewards.py
    saves: prompt ("\n\nHuman: ... \n\nAssistant:", or plain text), response, and score1, score2, ... in the
    order of its --reward_names, which the spec names; or columns that have the dimensions' own names.
    """
    text = _text(row, "prompt")
    flattened = text if re.match(_HH_MARKER, text) else f"\n\nHuman: {text}"
    turns = _split_turns(flattened, _HH_MARKER)
    if turns[-1] == Message(role="assistant", content=""):  # the cue for the response
        turns = turns[:-1]
    values = {
        name: row[name] if name in row else row.get(f"score{number}")
        for number, name in enumerate(dimensions, start=1)
    }
    scores = {name: value for name, value in values.items() if value is not None}
    if not scores:
        raise ValueError(f"no score; columns {listed(dimensions)} or score1, ... are accepted")
    return ParsedRow(Conversation(turns), [Response(text=_text(row, "response"), scores=scores)])


def _saferlhf(row: dict[str, Any], dimensions: tuple[str, ...]) -> ParsedRow:
    """PKU-Alignment/PKU-SafeRLHF: two responses a row, and which is better, which is safer."""
    winners = {name: row[f"{name}_response_id"] for name in dimensions}
    for name, winner in winners.items():
        if winner not in (0, 1):
            raise ValueError(f"{name}_response_id is {short_repr(winner)}; 0 and 1 are accepted")
    responses = [
        Response(
            text=_text(row, f"response_{number}"),
            scores={name: float(winner == number) for name, winner in winners.items()},
        )
        for number in (0, 1)
    ]
    return ParsedRow(Conversation.model_validate(_text(row, "prompt")), responses)


_HH_MARKER = r"\n\n(Human|Assistant):"


def _hh_rlhf(row: dict[str, Any], dimensions: tuple[str, ...]) -> ParsedRow:
    """Anthropic/hh-rlhf: two conversations a row that differ in the last Assistant turn alone."""
    chosen, rejected = (
        _split_turns(_text(row, name), _HH_MARKER) for name in ("chosen", "rejected")
    )
    if chosen[:-1] != rejected[:-1] or {chosen[-1].role, rejected[-1].role} != {"assistant"}:
        raise ValueError("chosen and rejected must be the same up to their last Assistant turn")
    responses = _pair_responses(chosen[-1].content, rejected[-1].content, dimensions[0])
    return ParsedRow(Conversation(chosen[:-1]), responses)


class _Pair(BaseModel):
    """A row of a user's file that holds a chosen and a rejected response."""

    model_config = ConfigDict(extra="forbid")

    prompt: Any
    chosen: str
    rejected: str
    dimension: str | None = None


def _user_file(row: dict[str, Any], dimensions: tuple[str, ...]) -> ParsedRow:
    """A PreferenceRecord, or {"prompt", "chosen", "rejected", "dimension"}; null is as good as no key."""
    fields = _without_null(row)
    if "responses" not in fields:
        pair = _Pair.model_validate(fields)
        responses = _pair_responses(pair.chosen, pair.rejected, pair.dimension or dimensions[0])
        fields = {"prompt": pair.prompt, "responses": responses}
    record = PreferenceRecord.model_validate(fields)
    return ParsedRow(record.prompt, record.responses, record.scorers)


SOURCES = {
    "helpsteer2": SourceFormat(
        _helpsteer2,
        ("helpfulness", "correctness", "coherence", "complexity", "verbosity"),
        "nvidia/HelpSteer2",
        join_rows="next",
    ),
    # RiC saves all chosen responses first, then all rejected ones.
    "ric": SourceFormat(
        _ric, ("harmless", "helpful", "humor"), max_dimension_names=8, join_rows="all"
    ),
    "saferlhf": SourceFormat(_saferlhf, ("better", "safer"), "PKU-Alignment/PKU-SafeRLHF"),
    "hh-rlhf": SourceFormat(
        _hh_rlhf,
        ("harmless",),
        "Anthropic/hh-rlhf",
        subfolder_of={"harmless": "harmless-base", "helpful": "helpful-base"},
        max_dimension_names=1,
    ),
    "jsonl": SourceFormat(_user_file, ("preferred",), max_dimension_names=1),
}
