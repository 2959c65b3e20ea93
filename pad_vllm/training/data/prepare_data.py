"""From data specs to the prompt groups of a run: read, tokenize, split, put on one scale.

In: Settings and a tokenizer. Out: `PreparedData`, the same for every worker and every resumption. Spreads
come from the training prompts alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.conversation import Conversation
from pad_vllm.text.preference_text import with_preference
from pad_vllm.training.data.data_report import DataReport
from pad_vllm.training.data.data_sources import read_source, require_records, scored_dimensions
from pad_vllm.training.data.data_spec import DataSpec, weight_by_label
from pad_vllm.training.data.drawn_answers import drawn_temperature, require_unguided
from pad_vllm.training.data.group_builder import GroupingCounts, build_groups, with_token_ids
from pad_vllm.training.data.preference_record import PreferenceRecord, unit_hash
from pad_vllm.training.data.prompt_groups import (
    PART_NAMES,
    AnyGroup,
    PromptGroup,
    divide_by_spread,
    score_spreads,
    split_by_key,
)
from pad_vllm.training.data.response_limit import ResponseLimit
from pad_vllm.training.data.synthetic_preferences import describe_weights, draw_for_known
from pad_vllm.training.settings import Settings
from pad_vllm.wording import listed


@dataclass(frozen=True)
class TrainedBase:
    """What of the base decides which data it can be trained on."""

    fingerprint: str | None
    """Of its weights; None: unknown."""

    context: int | None
    """Most tokens of a text; None: unknown."""


@dataclass(frozen=True)
class PreparedData:
    """The groups of a run. Scores are in spreads."""

    dimensions: tuple[str, ...]
    """D names."""

    train: list[PromptGroup]
    validation: list[PromptGroup]
    held_out: list[PromptGroup]
    report: DataReport
    settings: Settings
    """The run's, with what the data decides: max_response, and the temperature of method scores."""

    remarks: list[str]
    """Lines for the log."""

    def groups(self) -> list[PromptGroup]:
        """Of all parts."""
        return [*self.train, *self.validation, *self.held_out]


def checkpoint_context_tokens(checkpoint: Path) -> int | None:
    """Most tokens that the model in a checkpoint's folder reads; None if its config does not say."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False).get_text_config()
    return getattr(config, "max_position_embeddings", None)


def prepare_groups(
    settings: Settings, tokenizer: Any, base: TrainedBase | None = None
) -> PreparedData:
    """Read, tokenize, split and scale the data that settings name.

    Args:
        settings: the run's.
        tokenizer: the base's, with a chat template.
        base: what is trained; None: nothing is, so that answers of any model are accepted.

    Raises:
        ValueError: data that cannot be used: a wrong spec, a source without records, under `strict` a
            malformed row, a part without prompts, answers of others where credit is learned.
    """
    specs = [DataSpec.parse(text) for text in settings.data]
    reads = [read_source(s, strict=settings.strict, limit=settings.limit) for s in specs]
    source_reports = [report for _, report in reads]
    require_records(source_reports, specs)
    records = [record for source_records, _ in reads for record in source_records]
    settings, remarks = _with_drawn_temperature(settings, records, base)
    records = list(with_token_ids(records, tokenizer))
    lengths = [len(one.token_ids or ()) for record in records for one in record.responses]
    context = None if base is None else base.context
    limit = ResponseLimit.choose(lengths, settings.max_response, settings.max_prompt, context)
    settings = replace(settings, max_response=limit.tokens)
    dimensions = tuple(settings.dimensions or scored_dimensions(records))
    groups, grouping = build_groups(
        records,
        tokenizer,
        dimensions,
        max_prompt=settings.max_prompt,
        max_response=limit.tokens,
        weight_of_source=weight_by_label(specs),
    )
    if not groups:
        raise ValueError(
            f"none of the records of {listed(grouping)} can be trained on: "
            f"{_left_out(grouping, dimensions, settings)}. Raise the limits, or give data that scores two "
            "answers to a prompt differently"
        )
    parts = split_groups(groups, settings, _left_out(grouping, dimensions, settings))
    report = DataReport.from_parts(
        source_reports, grouping, parts, limit, scorers_of(records, dimensions)
    )
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
    return PreparedData(dimensions, train, validation, held_out, report, settings, remarks)


def _with_drawn_temperature(
    settings: Settings, records: Sequence[PreferenceRecord], base: TrainedBase | None
) -> tuple[Settings, list[str]]:
    """The settings with the temperature of the answers, and remarks; for a base also checks who drew them."""
    if settings.method != "scores":
        return settings, []
    require_unguided(records)
    if base is None:
        return settings, []
    recipe = settings.recipe
    temperature, remarks = drawn_temperature(records, base.fingerprint, recipe.temperature)
    return replace(settings, recipe=replace(recipe, temperature=temperature)), remarks


def _left_out(
    grouping: Mapping[str, GroupingCounts], dimensions: Sequence[str], settings: Settings
) -> str:
    """What `build_groups` left out and why, in words."""
    total = GroupingCounts()
    for counts in grouping.values():
        total.add(counts)
    cut = (
        f"answers that were cut at --max-response {settings.max_response}, with scores of the whole"
    )
    reasons = {
        f"prompts longer than --max-prompt {settings.max_prompt}": total.long_prompts,
        "prompts that the chat template refuses": total.refused_prompts,
        f"records without two different scores of {listed(dimensions)}": total.uninformative,
        cut: total.unlabelled_responses,
    }
    return "; ".join(f"{count} {reason}" for reason, count in reasons.items() if count)


def scorers_of(
    records: Sequence[PreferenceRecord], dimensions: Sequence[str]
) -> dict[str, list[str]]:
    """Dimension -> the scorers that made its scores in any record, in alphabetical order."""
    return {
        name: sorted({record.scorers[name] for record in records if name in record.scorers})
        for name in dimensions
    }


def split_groups(
    groups: Sequence[AnyGroup], settings: Settings, left_out: str = ""
) -> tuple[list[AnyGroup], list[AnyGroup], list[AnyGroup]]:
    """(Training, validation, held-out) groups.

    Args:
        groups: of all parts.
        settings: have the parts' shares.
        left_out: what did not become a group, and why, for messages.

    Raises:
        ValueError: a part has none.
    """
    parts = split_by_key(groups, settings.validation, settings.held_out)
    for name, part in zip(PART_NAMES, parts, strict=True):
        if not part:
            raise ValueError(
                f"no prompt is left for the {name} part, of {len(groups)} in all"
                f"{' (left out: ' + left_out + ')' if left_out else ''}; give more data, raise --max-prompt, "
                "or change --validation and --held-out"
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
