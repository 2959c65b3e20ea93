"""From data specs to the groups of a run: read, tokenize, split, put on one scale.

In: Settings and a tokenizer. Out: `Prepared`, the same for every worker and every resumption. Spreads come
from the training prompts alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.preference_text import with_preference
from pad_vllm.training.data import data_sources
from pad_vllm.training.data import prompt_groups as data
from pad_vllm.training.data.preference_record import PreferenceRecord, unit_hash
from pad_vllm.training.data.prompt_groups import AnyGroup, DataReport, PromptGroup
from pad_vllm.training.data.synthetic_preferences import describe_weights, draw_for_known
from pad_vllm.training.settings import Settings


@dataclass(frozen=True)
class PreparedData:
    """The groups of a run, scores in spreads."""

    dimensions: tuple[str, ...]
    train: list[PromptGroup]
    validation: list[PromptGroup]
    held_out: list[PromptGroup]
    spreads: dict[str, Tensor]
    report: DataReport


def checkpoint_folder(base: str) -> Path:
    """The folder of a base: a name of `pad-vllm models`, a folder, or a hub name, downloaded."""
    from huggingface_hub import snapshot_download

    from pad_vllm.catalog.name_resolution import resolve_base

    resolved = resolve_base(base)
    if Path(resolved).is_dir():
        return Path(resolved)
    wanted = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
    return Path(snapshot_download(resolved, allow_patterns=wanted))


def with_stated_preferences(
    group: PromptGroup, copies: int, tokenizer: Any, dimensions: Sequence[str]
) -> list[PromptGroup]:
    """Copies of a group whose prompts state a drawn preference, which then is the one trained.

    The paper's text conditioning, for a PersRM of the `resident` engine. The key seeds the draw, so
    a prompt gets the same preferences in every run.
    """
    known = ~group.scores[:, -1].isnan().any(0)
    generator = torch.Generator().manual_seed(int(unit_hash(f"text {group.prompt_key}") * 2**31))
    variants = []
    for row in draw_for_known(known, copies, generator).tolist():
        weights = {d: v for d, v in zip(dimensions, row, strict=True) if v}
        asked = with_preference(list(group.conversation), describe_weights(weights))
        prompt_ids = chat_token_ids(tokenizer, asked)
        variants.append(
            replace(
                group, conversation=tuple(asked), prompt_ids=prompt_ids, stated_weights=tuple(row)
            )
        )
    return variants


def split_groups(
    groups: Sequence[AnyGroup], settings: Settings
) -> tuple[list[AnyGroup], list[AnyGroup], list[AnyGroup]]:
    """Training, validation and held-out groups. ValueError where nothing is left of a part."""
    parts = data.split_by_key(groups, settings.validation, settings.held_out)
    for name, part in zip(data.PART_NAMES, parts, strict=True):
        if not part:
            raise ValueError(
                f"no prompt is left for the {name} part, of {len(groups)} in all; give more data, "
                "raise --max-prompt, or change --validation and --held-out"
            )
    return parts


def _require_unguided(records: Sequence[PreferenceRecord]) -> None:
    """Credit is what a token of the base's own draw was worth."""
    guided = sum(bool(one.guided_by) for record in records for one in record.responses)
    if guided:
        raise ValueError(
            f"{guided} responses were drawn under guidance; --teacher scores accepts the base's own. Leave "
            "their files out, or use --teacher pairs"
        )


def prepare_groups(settings: Settings, tokenizer: Any) -> PreparedData:
    """Read, tokenize, split and scale. ValueError where nothing is left of a part."""
    specs = [data_sources.DataSpec.parse(text) for text in settings.data]
    reads = [
        data_sources.read_source(s, strict=settings.strict, limit=settings.limit) for s in specs
    ]
    records = [record for part, _ in reads for record in part]
    if settings.method == "scores":
        _require_unguided(records)
    dimensions = settings.dimensions or data_sources.scored_dimensions(records)
    groups, lengths = data.load_groups(
        records,
        tokenizer,
        dimensions,
        max_prompt=settings.max_prompt,
        max_response=settings.max_response,
        weight_of_source=data_sources.weight_by_label(specs),
    )
    parts = split_groups(groups, settings)
    report = DataReport.from_parts([read_report for _, read_report in reads], lengths, parts)
    spreads = data.score_spreads(parts[0])
    train, validation, held_out = (data.divide_by_spread(part, spreads) for part in parts)
    copies = settings.text_preferences
    stated = (
        [with_stated_preferences(g, copies, tokenizer, dimensions) for g in train] if copies else []
    )
    train += [group for groups in stated for group in groups]
    return PreparedData(tuple(dimensions), train, validation, held_out, spreads, report)
