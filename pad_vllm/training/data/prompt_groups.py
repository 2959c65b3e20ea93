"""Records as training groups: one prompt, several responses, one score a dimension for each.

In: records, a tokenizer, the dimensions' names. Out: groups of token ids and scores, and what was cut
or left out. A group is kept together so that one forward of a response serves every pair it is in.
Beginnings of responses are scored too (CUTS): the log-probability of a beginning is a partial sum of
the whole's, so pairs of beginnings cost nothing and say where in the text a preference was met.
Knows nothing of models or losses, nor where records come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from jinja2 import TemplateError
from torch import Tensor

from pad_vllm.evaluation.lexical_scorers import COMPLETE_ONLY, LEXICAL_SCORERS, lexical_scores
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.training.data.data_sources import SourceReport, repeats_per_epoch
from pad_vllm.training.data.preference_record import PreferenceRecord, Response, unit_hash

PREFIX_LENGTHS = (24, 48, 72, 96)
"""Tokens after which a beginning is scored; the whole response comes last."""

PART_NAMES = ("train", "validation", "held out")
"""Of the prompts, in the order of `split`."""


@dataclass(frozen=True)
class PromptGroup:
    """One prompt with R responses that some dimension tells apart."""

    prompt_key: str  # the record's, which decides the group's part of the split
    source: str
    prompt_ids: list[int]
    response_ids: list[list[int]]
    scores: Tensor  # [R, C + 1, D] in own units, NaN where unknown; last row the whole response
    prefix_scorers: tuple[
        str | None, ...
    ]  # D: the scorer that can score unfinished text too, or None
    conversation: tuple[dict[str, str], ...]  # the conversation before its template
    repeats_per_epoch: int = 1  # how often an epoch sees the group
    stated_weights: tuple[float, ...] | None = (
        None  # D: the preference that the prompt states in words
    )
    prefix_spread: Tensor | float = 1.0  # [D] that beginnings up to the first cut were divided by


AnyGroup = TypeVar("AnyGroup", bound=PromptGroup)


@dataclass
class GroupingCounts:
    """What became of one source's records on the way to groups."""

    groups: int = 0
    """Groups."""

    long_prompts: int = 0
    """Records dropped: the prompt has more than max_prompt tokens."""

    refused_prompts: int = 0
    """Records dropped: the chat template does not take such a conversation."""

    cut_responses: int = 0
    """Responses cut to max_response tokens."""

    duplicate_responses: int = 0
    """Responses dropped: after the cut another one has the same tokens."""

    uninformative: int = 0
    """Records dropped: no dimension tells two of their responses apart."""

    pairs: dict[str, int] = field(default_factory=dict)
    """Dimension -> pairs of whole responses that it knows and tells apart."""


@dataclass
class GroupingReport:
    """Lengths per source."""

    sources: dict[str, GroupingCounts] = field(default_factory=dict)


@dataclass(frozen=True)
class _Encoder:
    tokenizer: Any
    max_prompt: int
    max_response: int

    def prompt(self, record: PreferenceRecord, lengths: GroupingCounts) -> list[int] | None:
        chat = [message.model_dump() for message in record.prompt]
        try:
            ids = chat_token_ids(self.tokenizer, chat)
        except TemplateError:  # Gemma's takes no system turn, for instance
            lengths.refused_prompts += 1
            return None
        if len(ids) > self.max_prompt:
            lengths.long_prompts += 1
            return None
        return ids

    def response(self, response: Response, lengths: GroupingCounts) -> tuple[list[int], bool]:
        """Token ids, ended as the model ends its turn, and whether they were cut."""
        ids = list(response.token_ids or [])
        if not ids:
            ids += self.tokenizer(response.text, add_special_tokens=False)["input_ids"]
            if self.tokenizer.eos_token_id is not None:
                ids.append(self.tokenizer.eos_token_id)
        cut = len(ids) > self.max_response
        lengths.cut_responses += cut
        return ids[: self.max_response], cut

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def load_groups(
    records: Iterable[PreferenceRecord],
    tokenizer: Any,
    dimensions: tuple[str, ...],
    *,
    max_prompt: int,
    max_response: int,
    weight_of_source: Mapping[str, float] | None = None,
) -> tuple[list[PromptGroup], GroupingReport]:
    """Groups in the records' order. weights: source -> weight (sources.weights); 1 where not named."""
    encoder, report, groups = _Encoder(tokenizer, max_prompt, max_response), GroupingReport(), []
    for record in records:
        lengths = report.sources.setdefault(
            record.source, GroupingCounts(pairs=dict.fromkeys(dimensions, 0))
        )
        group = _group(record, encoder, dimensions, lengths)
        repeat = repeats_per_epoch((weight_of_source or {}).get(record.source, 1.0), record.key)
        if group is not None and repeat:
            lengths.groups += 1
            for name, pairs in zip(dimensions, _pairs(group.scores[:, -1]), strict=True):
                lengths.pairs[name] += pairs
            groups.append(replace(group, repeats_per_epoch=repeat))
    return groups, report


def _group(
    record: PreferenceRecord,
    encoder: _Encoder,
    dimensions: tuple[str, ...],
    lengths: GroupingCounts,
) -> PromptGroup | None:
    prompt_ids = encoder.prompt(record, lengths)
    if prompt_ids is None:
        return None
    scorers = _scorers(record, dimensions)
    again = {d: name for d, name in enumerate(scorers) if name is not None}
    scores_by_ids: dict[tuple[int, ...], Tensor] = {}
    for response in record.responses:
        ids, cut = encoder.response(response, lengths)
        if tuple(ids) in scores_by_ids:
            lengths.duplicate_responses += 1
            continue
        known = [response.scores.get(name, torch.nan) for name in dimensions]
        scores_by_ids[tuple(ids)] = _scores(ids, cut, torch.tensor(known), again, encoder)
    scores = torch.stack(list(scores_by_ids.values()))
    if not sum(_pairs(scores.flatten(1))):
        lengths.uninformative += 1
        return None
    return PromptGroup(
        record.key,
        record.source,
        prompt_ids,
        [list(ids) for ids in scores_by_ids],
        scores,
        prefix_scorers=scorers,
        conversation=tuple(message.model_dump() for message in record.prompt),
    )


def _scorers(record: PreferenceRecord, dimensions: tuple[str, ...]) -> tuple[str | None, ...]:
    """Per dimension the scorer that can be asked again about unfinished text, or None."""
    names = [record.scorers.get(name, "") for name in dimensions]
    return tuple(
        name if name in LEXICAL_SCORERS and name not in COMPLETE_ONLY else None for name in names
    )


def _scores(
    ids: list[int], cut: bool, known: Tensor, again: dict[int, str], encoder: _Encoder
) -> Tensor:
    """Scores [C + 1, D] of a response's beginnings and of the whole.

    known [D]: the scores of the text. again: dimension -> the scorer to ask about beginnings, of which
    a cut response is one.
    """
    whole = _rescored(ids, known, again, encoder) if cut else known
    rows = [
        _rescored(ids[:n], known, again, encoder) if n < len(ids) else whole for n in PREFIX_LENGTHS
    ]
    return torch.stack([*rows, whole])


def _rescored(ids: list[int], known: Tensor, again: dict[int, str], encoder: _Encoder) -> Tensor:
    row = known.clone()
    if again:
        row[list(again)] = torch.tensor(lexical_scores(encoder.text(ids), tuple(again.values())))
    return torch.where(known.isnan(), known, row)


def _pairs(scores: Tensor) -> list[int]:
    """scores [R, N] -> for each of N the pairs with different known scores."""
    first, second = scores.unsqueeze(0), scores.unsqueeze(1)
    differ = (first != second) & ~first.isnan() & ~second.isnan()
    return [int(count) // 2 for count in differ.sum((0, 1))]


def split_by_key(
    groups: Iterable[AnyGroup], validation: float, held_out: float
) -> tuple[list[AnyGroup], list[AnyGroup], list[AnyGroup]]:
    """Training, validation and held-out groups. The key alone decides, so every run splits alike."""
    if validation < 0 or held_out < 0 or validation + held_out >= 1:
        raise ValueError(
            f"validation {validation:g} and held-out {held_out:g}: shares of the prompts of at "
            "least 0, together below 1, are accepted; lower one of them"
        )
    parts: tuple[list[AnyGroup], list[AnyGroup], list[AnyGroup]] = ([], [], [])
    for group in groups:
        place = unit_hash(group.prompt_key)
        parts[2 if place < held_out else 1 if place < held_out + validation else 0].append(group)
    return parts


def score_spreads(groups: Iterable[PromptGroup]) -> dict[str, Tensor]:
    """Source -> [C + 1, D] root-mean-square distance of a score from its prompt's mean.

    1 where no prompt has two known scores, and where all of a prompt's are the same: a divisor near 0
    would magnify noise in the scores of validation prompts.
    """
    squares: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for group in groups:
        known = ~group.scores.isnan()
        distance = (group.scores - group.scores.nanmean(0)).nan_to_num()
        told = known & (known.sum(0) > 1)  # a single score is its own mean
        squares[group.source] = squares.get(group.source, 0) + (distance**2 * told).sum(0)
        counts[group.source] = counts.get(group.source, 0) + told.sum(0)
    deviations = {s: (squares[s] / counts[s].clamp_min(1)).sqrt() for s in squares}
    return {s: torch.where(spread > 1e-6, spread, 1.0) for s, spread in deviations.items()}


def divide_by_spread(
    groups: Iterable[PromptGroup], spreads: Mapping[str, Tensor]
) -> list[PromptGroup]:
    """Scores divided by their source's spread, so that sources are on one scale."""
    groups_in_spreads = []
    for group in groups:
        if group.source not in spreads:
            raise ValueError(
                f"source {group.source!r} has no spread; {', '.join(spreads) or 'none'} have. None of "
                "its prompts is in the training part: give it more records, or leave it out"
            )
        spread = spreads[group.source]
        groups_in_spreads.append(
            replace(group, scores=group.scores / spread, prefix_spread=spread[0])
        )
    return groups_in_spreads


@dataclass
class DataReport:
    """What a run was trained on; plain JSON through dataclasses.asdict."""

    read: dict[str, SourceReport]
    grouping: dict[str, GroupingCounts]
    prompts: dict[str, int]
    """Part (train, validation, held out) -> different prompts in it."""

    def as_dict(self) -> dict[str, Any]:
        """The counts as the model card has them."""
        head, *rows = self.table_rows()
        sources = [
            {"name": name} | {k: int(v) for k, v in zip(head[1:], counts, strict=True)}
            for name, *counts in rows
        ]
        return {"prompts": self.prompts, "sources": sources}

    @classmethod
    def from_parts(
        cls,
        reads: Iterable[SourceReport],
        lengths: GroupingReport,
        parts: tuple[Sequence[PromptGroup], Sequence[PromptGroup], Sequence[PromptGroup]],
    ) -> DataReport:
        """parts: what `split` returned."""
        prompts = {
            name: len({group.prompt_key for group in part})
            for name, part in zip(PART_NAMES, parts, strict=True)
        }
        return cls({report.source: report for report in reads}, lengths.sources, prompts)

    def table_rows(self) -> list[tuple[str, ...]]:
        """A table, its head first: a row a source, and one column a dimension with its pairs."""
        names = list(dict.fromkeys(n for lengths in self.grouping.values() for n in lengths.pairs))
        head = ("source", "read", "malformed", "duplicate", "single", "long", "refused", "cut")
        table = [(*head, "uninformative", "groups", *names)]
        for source in dict.fromkeys([*self.read, *self.grouping]):
            read = self.read.get(source, SourceReport(source))
            lengths = self.grouping.get(source, GroupingCounts())
            numbers = [read.read, read.malformed, read.duplicate_records, read.too_few_responses]
            numbers += [lengths.long_prompts, lengths.refused_prompts, lengths.cut_responses]
            numbers += [lengths.uninformative, lengths.groups]
            numbers += [lengths.pairs.get(name, 0) for name in names]
            table.append((source, *map(str, numbers)))
        return table

    def malformed_lines(self) -> Iterator[str]:
        """`file:line: reason` of the first malformed records of each source."""
        for report in self.read.values():
            yield from (f"{s.file}:{s.line}: {s.reason}" for s in report.first_malformed)
