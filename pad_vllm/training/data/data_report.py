"""What a run was trained on: counts of rows, records, prompts and pairs, by source, for log and model card.

In: the reports of reading and grouping, and the parts. Out: a table; JSON; lines that name malformed rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pad_vllm.training.data.data_sources import SourceReport
from pad_vllm.training.data.group_builder import GroupingCounts
from pad_vllm.training.data.prompt_groups import PART_NAMES, PromptGroup


@dataclass
class DataReport:
    """Counts of the data of a run; plain JSON through dataclasses.asdict."""

    source_reports: Mapping[str, SourceReport]
    """By source."""

    grouping: Mapping[str, GroupingCounts]
    """By source."""

    prompts: dict[str, int]
    """Part (train, validation, held out) -> different prompts in it."""

    @classmethod
    def from_parts(
        cls,
        source_reports: Iterable[SourceReport],
        grouping: Mapping[str, GroupingCounts],
        parts: tuple[Sequence[PromptGroup], Sequence[PromptGroup], Sequence[PromptGroup]],
    ) -> DataReport:
        """Count the prompts of each part.

        Args:
            source_reports: of `read_source`, one a source.
            grouping: of `build_groups`.
            parts: of `split_by_key`: (train, validation, held out).

        Returns:
            The report.
        """
        prompts = {
            name: len({group.prompt_key for group in part})
            for name, part in zip(PART_NAMES, parts, strict=True)
        }
        return cls({report.source: report for report in source_reports}, grouping, prompts)

    def as_dict(self) -> dict[str, Any]:
        """The counts as the model card has them."""
        head, *rows = self.table_rows()
        sources = [
            {"name": name} | {k: int(v) for k, v in zip(head[1:], counts, strict=True)}
            for name, *counts in rows
        ]
        return {"prompts": self.prompts, "sources": sources}

    def table_rows(self) -> list[tuple[str, ...]]:
        """A table, its head first: a row for each source; the last columns are pairs, by dimension."""
        names = list(dict.fromkeys(n for counts in self.grouping.values() for n in counts.pairs))
        head = ("source", "read", "malformed", "duplicate", "single", "long", "refused", "cut")
        table = [(*head, "uninformative", "groups", *names)]
        for source in dict.fromkeys([*self.source_reports, *self.grouping]):
            read = self.source_reports.get(source, SourceReport(source))
            counts = self.grouping.get(source, GroupingCounts())
            numbers = [read.read, read.malformed, read.duplicate_records, read.too_few_responses]
            numbers += [counts.long_prompts, counts.refused_prompts, counts.cut_responses]
            numbers += [counts.uninformative, counts.groups]
            numbers += [counts.pairs.get(name, 0) for name in names]
            table.append((source, *map(str, numbers)))
        return table

    def malformed_lines(self) -> Iterator[str]:
        """`file:line: reason` of the first malformed rows of each source."""
        for report in self.source_reports.values():
            yield from (f"{row.file}:{row.line}: {row.reason}" for row in report.first_malformed)
