"""What a run was trained on: counts of rows, records, prompts and pairs, by source, for log and model card.

In: the reports of reading and grouping, and the parts. Out: a table; JSON; lines that name malformed rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pad_vllm.text.prompt_digests import digest_prompts
from pad_vllm.training.data.data_sources import SourceReport
from pad_vllm.training.data.group_builder import GroupingCounts
from pad_vllm.training.data.prompt_groups import PART_NAMES, PromptGroup
from pad_vllm.training.data.response_limit import ResponseLimit


@dataclass
class DataReport:
    """Counts of the data of a run; plain JSON through dataclasses.asdict."""

    source_reports: Mapping[str, SourceReport]
    """By source."""

    grouping: Mapping[str, GroupingCounts]
    """By source."""

    prompts: dict[str, int]
    """Part (train, validation, held out) -> different prompts in it."""

    response_limit: ResponseLimit

    scorers: dict[str, list[str]]
    """Dimension -> the scorers that made its scores; none for scores that the data came with."""

    trained_prompts: str
    """`prompt_digests` of the prompts of the training and the validation part."""

    @classmethod
    def from_parts(
        cls,
        source_reports: Iterable[SourceReport],
        grouping: Mapping[str, GroupingCounts],
        parts: tuple[Sequence[PromptGroup], Sequence[PromptGroup], Sequence[PromptGroup]],
        response_limit: ResponseLimit,
        scorers: dict[str, list[str]],
    ) -> DataReport:
        """Count the prompts of each part.

        Args:
            source_reports: of `read_source`, one a source.
            grouping: of `build_groups`.
            parts: of `split_by_key`: (train, validation, held out).
            response_limit: what the answers were cut to.
            scorers: dimension -> the scorers that made its scores.

        Returns:
            The report.
        """
        prompts = {
            name: len({group.prompt_key for group in part})
            for name, part in zip(PART_NAMES, parts, strict=True)
        }
        trained = digest_prompts(group.prompt_key for part in parts[:2] for group in part)
        by_source = {report.source: report for report in source_reports}
        return cls(by_source, grouping, prompts, response_limit, scorers, trained)

    def as_dict(self) -> dict[str, Any]:
        """The counts as the model card has them."""
        head, *rows = self.table_rows()
        sources: list[dict[str, Any]] = [
            {"name": name} | {k: int(v) for k, v in zip(head[1:], counts, strict=True)}
            for name, *counts in rows
        ]
        for source in sources:
            report = self.source_reports.get(str(source["name"]))
            if report is not None and report.left_out:
                source["left_out"] = report.left_out
        return {
            "prompts": self.prompts,
            "sources": sources,
            "response_limit": asdict(self.response_limit),
            "scorers": self.scorers,
            "trained_prompts": self.trained_prompts,
        }

    def table_rows(self) -> list[tuple[str, ...]]:
        """A table, its head first: a row for each source; the last columns are pairs, by dimension."""
        names = list(dict.fromkeys(n for counts in self.grouping.values() for n in counts.pairs))
        head = ("source", "read", "malformed", "duplicate", "single", "long", "refused", "cut")
        table = [(*head, "same", "unlabelled", "uninformative", "groups", *names)]
        for source in dict.fromkeys([*self.source_reports, *self.grouping]):
            read = self.source_reports.get(source, SourceReport(source))
            counts = self.grouping.get(source, GroupingCounts())
            numbers = [read.read, read.malformed, read.duplicate_records, read.too_few_responses]
            numbers += [counts.long_prompts, counts.refused_prompts, counts.cut_responses]
            numbers += [counts.duplicate_responses, counts.unlabelled_responses]
            numbers += [counts.uninformative, counts.groups]
            numbers += [counts.pairs.get(name, 0) for name in names]
            table.append((source, *map(str, numbers)))
        return table

    def malformed_lines(self) -> Iterator[str]:
        """`file:line: reason` of the first malformed rows of each source."""
        for report in self.source_reports.values():
            yield from (f"{row.file}:{row.line}: {row.reason}" for row in report.first_malformed)

    def remarks(self) -> Iterator[str]:
        """What was left out of each source, by reason; columns that were not read; what was cut."""
        for report in self.source_reports.values():
            if report.left_out:
                counts = ", ".join(f"{reason} {count}" for reason, count in report.left_out.items())
                yield f"{report.source}: left out: {counts}"
            if report.unread_columns:
                yield f"{report.source}: columns that are not read: {', '.join(report.unread_columns)}"
        unlabelled = sum(counts.unlabelled_responses for counts in self.grouping.values())
        yield from self.response_limit.lines(unlabelled)
