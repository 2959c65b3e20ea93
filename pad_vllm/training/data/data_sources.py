"""Preference data as records: reads what a `DataSpec` asks for.

In: a spec. Out: records, and a report of the rows and records that were left out, malformed ones with file
and line. Knows nothing of tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

from pad_vllm.adapter.manifest import DIMENSION_NAME
from pad_vllm.text.conversation import Conversation, prompt_key
from pad_vllm.training.data.content_digest import RowDigest, file_digest
from pad_vllm.training.data.data_spec import DataSpec, repeats_per_epoch, unknown_subset
from pad_vllm.training.data.dataset_rows import dataset_revision, read_rows
from pad_vllm.training.data.jsonl import first_validation_error
from pad_vllm.training.data.parsed_row import (
    DUPLICATE,
    EQUAL_ANSWERS,
    MALFORMED,
    TOO_FEW_ANSWERS,
    ParsedRow,
    UnusableRow,
)
from pad_vllm.training.data.preference_record import PreferenceRecord, Response
from pad_vllm.training.data.published_dataset_columns import SOURCES
from pad_vllm.wording import listed, short_repr


@dataclass(frozen=True)
class MalformedRow:
    """A row that is no record, and why."""

    file: str
    """The file, or the data set's name on the hub."""

    line: int
    """Line of the file from 1; in a file without lines, the row's number."""

    reason: str


@dataclass
class SourceReport:
    """How many rows of one source became records, and how many did not, by reason."""

    source: str
    read: int = 0
    """Rows or non-blank lines."""

    records: int = 0
    """Records; rows that share a prompt may be joined into one."""

    malformed: int = 0
    """Rows that are no record, for whatever reason."""

    first_malformed: list[MalformedRow] = field(default_factory=list)
    """At most MAX_LISTED of them."""

    duplicate_records: int = 0
    """Records with the prompt and the response texts of an earlier one."""

    merged_responses: int = 0
    """Responses with the text of another one of their record."""

    too_few_responses: int = 0
    """Records with fewer than two different responses."""

    dropped_by_weight: int = 0
    """Records that a weight below 1 left out."""

    left_out: dict[str, int] = field(default_factory=dict)
    """Reason (parsed_row.py) -> rows, answers or records that were left out for it."""

    unread_columns: dict[str, None] = field(default_factory=dict)
    """Columns that are not read, in the order of their first appearance."""

    digests: dict[str, str] = field(default_factory=dict)
    """File, or the data set's name on the hub -> digest of its content, of the hub's of the rows read."""

    revision: str | None = None
    """The hub's commit; None: a local file, or unknown."""

    first_row: str = ""
    """What the first row looks like, for messages."""

    MAX_LISTED: ClassVar[int] = 5

    def leave_out(self, reason: str) -> None:
        """Count one more row, answer or record that is left out."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1

    def add_malformed(self, row: MalformedRow, why: str = MALFORMED) -> None:
        """Count the row, and list it if it is one of the first. why: the reason to count it by."""
        self.malformed += 1
        self.leave_out(why)
        if len(self.first_malformed) < self.MAX_LISTED:
            self.first_malformed.append(row)


def read_source(
    spec: DataSpec, *, strict: bool = False, limit: int | None = None
) -> tuple[list[PreferenceRecord], SourceReport]:
    """Read the records of one source, in its order.

    Args:
        spec: which source.
        strict: raise for a malformed row instead of counting and skipping it.
        limit: the most records to read; None: all.

    Returns:
        (records, report of what was left out).

    Raises:
        ValueError: under `strict` a malformed row, with file, line and reason; a file that cannot be read.
        OSError: the hub could not be opened.
    """
    report = SourceReport(spec.label)
    hub_digest = RowDigest()
    rows = _parsed_rows(_rows(spec, report, hub_digest), spec, report, strict=strict)
    joined = _join_rows(rows, SOURCES[spec.name].join_rows)
    records = list(islice(_records(joined, spec, report), limit))
    report.records = len(records)
    if spec.path is None:
        report.digests = {str(SOURCES[spec.name].hub_name): hub_digest.value()}
    return records, report


def require_records(reports: Iterable[SourceReport], specs: Iterable[DataSpec]) -> None:
    """Raise ValueError for a source without a record: what was expected, found and left out.

    Args:
        reports: of `read_source`.
        specs: of the same sources, in the same order.
    """
    for report, spec in zip(reports, specs, strict=True):
        if report.records:
            continue
        lines = [
            f"data {spec.label!r}: none of its {report.read} rows is a record that can be learned from",
            f"expected: {SOURCES[spec.name].form}",
            f"found: {report.first_row or 'nothing'}",
        ]
        counts = [f"{reason} {count}" for reason, count in report.left_out.items()]
        counts += [f"weight below 1 {report.dropped_by_weight}"] if report.dropped_by_weight else []
        lines += [f"left out: {listed(counts)}"]
        lines += [f"{row.file}:{row.line}: {row.reason}" for row in report.first_malformed]
        raise ValueError("\n".join(lines))


def scored_dimensions(records: Iterable[PreferenceRecord]) -> tuple[str, ...]:
    """Every dimension that some response has a score for, in the order of their first appearance."""
    return tuple(dict.fromkeys(d for record in records for r in record.responses for d in r.scores))


def _rows(
    spec: DataSpec, report: SourceReport, hub_digest: RowDigest
) -> Iterator[tuple[str, int, Any]]:
    """The rows of `read_rows`; notes in the report what they were read from."""
    source = SOURCES[spec.name]
    hub_name, subfolder = str(source.hub_name), _subfolder(spec)
    if spec.path is None:
        report.revision = dataset_revision(hub_name)
        rows = read_rows(spec.name, None, hub_name, subfolder, source.split, report.revision)
        yield from hub_digest.over(rows)
        return
    for file, line, row in read_rows(spec.name, spec.path, hub_name, subfolder, source.split):
        if file not in report.digests:
            report.digests[file] = file_digest(Path(file))
        yield file, line, row


def _parsed_rows(
    rows: Iterator[tuple[str, int, Any]], spec: DataSpec, report: SourceReport, *, strict: bool
) -> Iterator[ParsedRow]:
    """The rows that are not malformed; counts all in the report."""
    for file, line, row in rows:
        report.read += 1
        report.first_row = report.first_row or _described(row)
        try:
            parsed = _parse(row, spec)
        except (KeyError, ValueError, RecursionError) as error:
            reason = _reason(error)
            if strict:
                raise ValueError(
                    f"{file}, line {line}: {reason}. Correct it, or leave strict out to "
                    "skip and count such records"
                ) from error
            why = error.reason if isinstance(error, UnusableRow) else MALFORMED
            report.add_malformed(MalformedRow(file, line, reason), why)
        else:
            for reason in parsed.left_out:
                report.leave_out(reason)
            report.unread_columns.update(dict.fromkeys(parsed.unread_columns))
            yield parsed


def _subfolder(spec: DataSpec) -> str | None:
    """The folder of the spec's dimension. Raises ValueError if others have folders and it has none."""
    subfolder_of, name = SOURCES[spec.name].subfolder_of, spec.dimensions[0]
    if name not in subfolder_of and spec.path is not None:
        for folder in subfolder_of.values():
            if (spec.path / folder).is_dir():
                raise ValueError(unknown_subset(spec.name, name))
    return subfolder_of.get(name)


def _parse(row: Any, spec: DataSpec) -> ParsedRow:
    row = json.loads(row) if isinstance(row, str) else row
    if not isinstance(row, dict):
        raise ValueError(f"{short_repr(row)} is not a JSON object")
    parsed = SOURCES[spec.name].parse_row(row, spec.dimensions)
    if parsed.prompt[-1].role != "user":
        raise ValueError(f"the prompt must end with a user turn, not {parsed.prompt[-1].role}")
    for name in {name for response in parsed.responses for name in response.scores}:
        if not DIMENSION_NAME.fullmatch(name):
            raise ValueError(f"dimension {short_repr(name)}: letters, digits, - and _ are accepted")
    return parsed


def _described(row: Any) -> str:
    """The columns of a row; of a line that is no JSON object, its beginning."""
    try:
        fields = json.loads(row) if isinstance(row, str) else row
    except (ValueError, RecursionError):
        fields = row
    return f"columns {listed(fields)}" if isinstance(fields, dict) else short_repr(fields)


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return first_validation_error(error)
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at character {error.pos + 1}"
    if isinstance(error, KeyError):
        return f"column {error} is missing"
    return str(error)


def _join_rows(
    rows: Iterator[ParsedRow], which: Literal["no", "next", "all"]
) -> Iterator[ParsedRow]:
    """Rows that share a prompt as one row; those that are joined over the whole file come last."""
    if which == "next":
        for _, group in groupby(rows, key=lambda row: row.prompt):
            yield _joined(list(group))
        return
    by_prompt: dict[Conversation, list[ParsedRow]] = {}
    for row in rows:
        if which == "all" or row.one_of_several:
            by_prompt.setdefault(row.prompt, []).append(row)
        else:
            yield row
    yield from map(_joined, by_prompt.values())


def _joined(rows: list[ParsedRow]) -> ParsedRow:
    responses = [response for row in rows for response in row.responses]
    return ParsedRow(rows[0].prompt, responses, rows[0].scorers)


def _records(
    rows: Iterable[ParsedRow], spec: DataSpec, report: SourceReport
) -> Iterator[PreferenceRecord]:
    """A record of each row that has two different responses, is no duplicate and is kept by the weight."""
    seen = set()
    for row in rows:
        responses = _distinct_responses(row.responses)
        report.merged_responses += len(row.responses) - len(responses)
        if len(responses) < 2:
            report.too_few_responses += 1
            report.leave_out(EQUAL_ANSWERS if len(row.responses) > 1 else TOO_FEW_ANSWERS)
            continue
        identity = row.prompt, frozenset(response.text for response in responses)
        if identity in seen:
            report.duplicate_records += 1
            report.leave_out(DUPLICATE)
            continue
        seen.add(identity)
        if repeats_per_epoch(spec.weight, prompt_key(row.prompt)):
            yield PreferenceRecord(
                prompt=row.prompt,
                responses=responses,
                source=spec.label,
                scorers=dict(row.scorers),
                drawn_by=row.drawn_by,
            )
        else:
            report.dropped_by_weight += 1


def _distinct_responses(responses: list[Response]) -> list[Response]:
    """Responses of the same text as one, with the mean of their scores."""
    by_text: dict[str, list[Response]] = {}
    for response in responses:
        by_text.setdefault(response.text, []).append(response)
    return [_merge(same) for same in by_text.values()]


def _merge(same: list[Response]) -> Response:
    names = dict.fromkeys(name for response in same for name in response.scores)
    means = {n: fmean(r.scores[n] for r in same if n in r.scores) for n in names}
    return same[0].model_copy(update={"scores": means}) if len(same) > 1 else same[0]
