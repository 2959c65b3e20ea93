"""From data specs to the prompt groups of a run: read, tokenize, split, put on one scale.

In: Settings and a tokenizer. Out: `PreparedData`, the same for every worker and every resumption. Spreads
come from the training prompts alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.conversation import Conversation
from pad_vllm.text.preference_text import with_preference
from pad_vllm.training.data.data_report import DataReport
from pad_vllm.training.data.data_sources import read_source, scored_dimensions
from pad_vllm.training.data.data_spec import DataSpec, weight_by_label
from pad_vllm.training.data.group_builder import build_groups
from pad_vllm.training.data.preference_record import PreferenceRecord, unit_hash
from pad_vllm.training.data.prompt_groups import (
    PART_NAMES,
    AnyGroup,
    PromptGroup,
    divide_by_spread,
    score_spreads,
    split_by_key,
)
from pad_vllm.training.data.synthetic_preferences import describe_weights, draw_for_known
from pad_vllm.training.settings import Settings


@dataclass(frozen=True)
class PreparedData:
    """The groups of a run. Scores are in spreads."""

    dimensions: tuple[str, ...]
    """D names."""

    train: list[PromptGroup]
    validation: list[PromptGroup]
    held_out: list[PromptGroup]
    report: DataReport


def prepare_groups(settings: Settings, tokenizer: Any) -> PreparedData:
    """Read, tokenize, split and scale the data that settings name.

    Raises ValueError for data that cannot be used: a wrong spec, under `strict` a malformed row, a part
    without prompts, guided responses where credit is learned.
    """
    specs = [DataSpec.parse(text) for text in settings.data]
    reads = [read_source(s, strict=settings.strict, limit=settings.limit) for s in specs]
    records = [record for source_records, _ in reads for record in source_records]
    if settings.method == "scores":
        _require_unguided(records)
    dimensions = tuple(settings.dimensions or scored_dimensions(records))
    groups, grouping = build_groups(
        records,
        tokenizer,
        dimensions,
        max_prompt=settings.max_prompt,
        max_response=settings.max_response,
        weight_of_source=weight_by_label(specs),
    )
    parts = split_groups(groups, settings)
    report = DataReport.from_parts([source_report for _, source_report in reads], grouping, parts)
    spreads = score_spreads(parts[0])
    train, validation, held_out = (divide_by_spread(part, spreads) for part in parts)
    if settings.text_preferences:
        train += [
            stated
            for group in list(train)
            for stated in with_stated_preferences(
                group, settings.text_preferences, tokenizer, dimensions
            )
        ]
    return PreparedData(dimensions, train, validation, held_out, report)


def split_groups(
    groups: Sequence[AnyGroup], settings: Settings
) -> tuple[list[AnyGroup], list[AnyGroup], list[AnyGroup]]:
    """(Training, validation, held-out) groups. Raises ValueError if a part has none."""
    parts = split_by_key(groups, settings.validation, settings.held_out)
    for name, part in zip(PART_NAMES, parts, strict=True):
        if not part:
            raise ValueError(
                f"no prompt is left for the {name} part, of {len(groups)} in all; give more data, "
                "raise --max-prompt, or change --validation and --held-out"
            )
    return parts


def with_stated_preferences(
    group: PromptGroup, copies: int, tokenizer: Any, dimensions: Sequence[str]
) -> list[PromptGroup]:
    """Copies of a group whose prompts state a drawn preference, which then is the one trained.

    This is the paper's text conditioning, for a PersRM of the `resident` engine. The key seeds the draw, so
    a prompt gets the same preferences in every run.

    Args:
        group: with D scores a response.
        copies: how many.
        tokenizer: the base's, with a chat template.
        dimensions: D names.

    Returns:
        The copies, without the group itself.
    """
    known = ~group.scores[:, -1].isnan().any(0)
    generator = torch.Generator().manual_seed(int(unit_hash(f"text {group.prompt_key}") * 2**31))
    stated = []
    for row in draw_for_known(known, copies, generator).tolist():
        weights = {d: w for d, w in zip(dimensions, row, strict=True) if w}
        messages = with_preference(group.conversation.messages(), describe_weights(weights))
        stated.append(
            replace(
                group,
                conversation=Conversation.model_validate(messages),
                prompt_ids=chat_token_ids(tokenizer, messages),
                stated_weights=tuple(row),
            )
        )
    return stated


def _require_unguided(records: Sequence[PreferenceRecord]) -> None:
    """Raises ValueError for guided responses: credit is what a token of the base's own sample was worth."""
    guided = sum(bool(response.guided_by) for record in records for response in record.responses)
    if guided:
        raise ValueError(
            f"{guided} responses were drawn under guidance; --teacher scores accepts the base's own. Leave "
            "their files out, or use --teacher pairs"
        )
