"""What each published preference data set calls its columns: the table `SOURCES`.

In: one row as its file has it. Out: a `ParsedRow`; or a ValueError or KeyError that says what is malformed.
Files of a user's own, and data sets that have one of their formats, are read by row_formats.py. Knows nothing
of files, or of how rows become records.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pad_vllm.text.conversation import Conversation, Message
from pad_vllm.training.data.parsed_row import (
    ParsedRow,
    answer_text,
    known_scores,
    pair_responses,
)
from pad_vllm.training.data.preference_record import Response
from pad_vllm.training.data.row_formats import ACCEPTED_FORMATS, parse_row_of_any_format
from pad_vllm.wording import short_repr


@dataclass(frozen=True)
class SourceFormat:
    """Where a data set is published, and how one of its rows is read."""

    parse_row: Callable[[dict[str, Any], tuple[str, ...]], ParsedRow]
    """(row, names of the dimensions) -> what the row says. Raises ValueError or KeyError if malformed."""

    dimensions: tuple[str, ...]
    """Names of the dimensions where the spec gives none."""

    form: str
    """What a row looks like, for messages."""

    hub_name: str | None = None
    """None: the data set is not on the hub, and a spec needs a path."""

    subfolder_of: Mapping[str, str] = field(default_factory=dict)
    """First dimension of the spec -> the folder of the hub's repository that holds its rows."""

    split: str = "train"
    max_dimension_names: int = 0
    """How many dimensions a spec may name; 0: the data names them itself."""

    join_rows: Literal["no", "next", "all"] = "no"
    """Which rows with the same prompt become one record: those that are `one_of_several` (over the whole
    file), adjacent ones, or all of the file."""


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


def _helpsteer2(row: dict[str, Any], dimensions: tuple[str, ...]) -> ParsedRow:
    """nvidia/HelpSteer2: a response a row, scored 0 to 4; later turns of a prompt follow markers."""
    text = "<extra_id_1>User\n" + _text(row, "prompt")
    scores = known_scores({name: row[name] for name in dimensions})
    turns = _split_turns(text, r"\s*<extra_id_1>(User|Assistant)\n")
    response = Response(text=answer_text(row["response"], "response"), scores=scores)
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
    response = Response(text=answer_text(row["response"], "response"), scores=known_scores(values))
    return ParsedRow(Conversation(turns), [response])


def _saferlhf(row: dict[str, Any], dimensions: tuple[str, ...]) -> ParsedRow:
    """PKU-Alignment/PKU-SafeRLHF: two responses a row, and which is better, which is safer."""
    winners = {name: row[f"{name}_response_id"] for name in dimensions}
    for name, winner in winners.items():
        if winner not in (0, 1):
            raise ValueError(f"{name}_response_id is {short_repr(winner)}; 0 and 1 are accepted")
    responses = [
        Response(
            text=answer_text(row[f"response_{number}"], f"response_{number}"),
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
    texts = answer_text(chosen[-1].content, "chosen"), answer_text(rejected[-1].content, "rejected")
    return ParsedRow(Conversation(chosen[:-1]), pair_responses(*texts, dimensions[0]))


_ULTRAFEEDBACK = ("helpfulness", "honesty", "instruction_following", "truthfulness")

SOURCES = {
    "helpsteer2": SourceFormat(
        _helpsteer2,
        ("helpfulness", "correctness", "coherence", "complexity", "verbosity"),
        "columns prompt, response, helpfulness, correctness, coherence, complexity, verbosity",
        "nvidia/HelpSteer2",
        join_rows="next",
    ),
    # RiC saves all chosen responses first, then all rejected ones.
    "ric": SourceFormat(
        _ric,
        ("harmless", "helpful", "humor"),
        "columns prompt, response and the dimensions' names, or score1, score2, ...; a response a row",
        max_dimension_names=8,
        join_rows="all",
    ),
    "saferlhf": SourceFormat(
        _saferlhf,
        ("better", "safer"),
        "columns prompt, response_0, response_1, better_response_id, safer_response_id",
        "PKU-Alignment/PKU-SafeRLHF",
    ),
    "hh-rlhf": SourceFormat(
        _hh_rlhf,
        ("harmless",),
        "columns chosen, rejected: texts with Human: and Assistant: that differ in the last answer",
        "Anthropic/hh-rlhf",
        subfolder_of={"harmless": "harmless-base", "helpful": "helpful-base"},
        max_dimension_names=1,
    ),
    "ultrafeedback": SourceFormat(
        parse_row_of_any_format, _ULTRAFEEDBACK, ACCEPTED_FORMATS, "openbmb/UltraFeedback"
    ),
    "ultrafeedback-binarized": SourceFormat(
        parse_row_of_any_format,
        ("preferred",),
        ACCEPTED_FORMATS,
        "HuggingFaceH4/ultrafeedback_binarized",
        split="train_prefs",
        max_dimension_names=1,
    ),
    "jsonl": SourceFormat(
        parse_row_of_any_format, ("preferred",), ACCEPTED_FORMATS, max_dimension_names=1
    ),
}
