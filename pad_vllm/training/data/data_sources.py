"""Preference data as records: `Spec`, what users write, and `read`, what they get.

    NAME[:DIMENSION][=PATH][@WEIGHT]     helpsteer2    hh-rlhf:harmless=hh.jsonl.gz@0.5    jsonl=mine.jsonl

In: a spec. Out: records, and a report of what was left out, with file and line. Knows nothing of
tokenizers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from pad_vllm.adapter.manifest import DIMENSION_NAME
from pad_vllm.training.data.dataset_rows import FILE_FORMATS, read_rows
from pad_vllm.training.data.preference_record import Message, PreferenceRecord, Response, unit_hash
from pad_vllm.training.data.published_dataset_columns import SOURCES, ParsedRow
from pad_vllm.wording import did_you_mean, listed, short_repr

_FORM = "NAME[:DIMENSION][=PATH][@WEIGHT], as in helpsteer2 or hh-rlhf:harmless=hh.jsonl.gz@0.5"


@dataclass(frozen=True)
class DataSpec:
    """A source as users ask for it."""

    name: str
    dimensions: tuple[str, ...]
    path: Path | None = None
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> DataSpec:
        """NAME[:DIMENSION][=PATH][@WEIGHT]; ric takes several dimensions, separated by commas."""
        head, has_path, path = text.partition("=")
        weight = "1"
        before, at, after = (path if has_path else head).rpartition("@")
        if at and not has_path:
            head, weight = before, after
        elif at and _number(after) is not None:  # a path may have an @ of its own
            path, weight = before, after
        name, colon, dimensions = head.partition(":")
        if name not in SOURCES:
            raise ValueError(
                f"data {text!r}: no source is called {name!r}. Accepted: {listed(SOURCES)}; "
                f"write {_FORM}.{did_you_mean(name, SOURCES)}"
            )
        if (has_path and not path) or (not has_path and SOURCES[name].hub_name is None):
            raise ValueError(
                f"data {text!r}: {name} has to be given a file or folder of {listed(FILE_FORMATS)}; "
                f"write {name}=PATH"
            )
        names = _names(text, name, dimensions) if colon else SOURCES[name].dimensions
        return cls(
            name, names, Path(path).expanduser() if has_path else None, _weight(text, weight)
        )

    @property
    def label(self) -> str:
        """The spec without its weight: what records, reports and spreads call the source."""
        own = self.dimensions == SOURCES[self.name].dimensions
        dimensions = "" if own else ":" + ",".join(self.dimensions)
        return f"{self.name}{dimensions}" + ("" if self.path is None else f"={self.path}")


def _names(text: str, source: str, given: str) -> tuple[str, ...]:
    names, most = tuple(given.split(",")), SOURCES[source].max_dimension_names
    if not most:
        raise ValueError(
            f"data {text!r}: {source} names its dimensions itself "
            f"({listed(SOURCES[source].dimensions)}); leave :{given} out"
        )
    if (
        len(set(names)) < len(names)
        or len(names) > most
        or not all(map(DIMENSION_NAME.fullmatch, names))
    ):
        raise ValueError(
            f"data {text!r}: {given!r} is not accepted after {source}:, at most {most} different "
            "names of letters, digits, - and _ that begin with a letter are; correct it, or leave "
            f"it out for {listed(SOURCES[source].dimensions)}"
        )
    return names


def _weight(text: str, given: str) -> float:
    weight = _number(given)
    if weight is None or not 0 < weight < math.inf:
        raise ValueError(
            f"data {text!r}: the weight {given!r} must be a finite number above 0 (0.5: half of the "
            "records, 2: each twice); correct it, or leave @ out for 1"
        )
    return weight


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def weight_by_label(specs: Iterable[DataSpec]) -> dict[str, float]:
    """Label -> weight; ValueError where two specs read the same data."""
    weight_of: dict[str, float] = {}
    for spec in specs:
        if spec.label in weight_of:
            raise ValueError(
                f"data {spec.label!r} is given twice; give it once, with a weight: {spec.label}@2"
            )
        weight_of[spec.label] = spec.weight
    return weight_of


def repeats_per_epoch(weight: float, prompt_key: str) -> int:
    """How often an epoch sees a prompt: the weight's whole part, and once more for its fraction of keys.

    The hash is salted, so that this choice is independent of the split, which hashes the key alone.
    """
    return math.floor(weight) + (unit_hash(f"weight\0{prompt_key}") < weight - math.floor(weight))


@dataclass(frozen=True)
class MalformedRow:
    """A malformed record. line counts from 1; in a file without lines it is the row's number."""

    file: str
    line: int
    reason: str


@dataclass
class SourceReport:
    """What became of one source's rows."""

    source: str
    read: int = 0
    """Rows or non-blank lines."""

    records: int = 0
    """Records; rows that share a prompt may be joined into one."""

    malformed: int = 0
    first_malformed: list[MalformedRow] = field(default_factory=list)
    """At most FIRST of them."""

    duplicate_records: int = 0
    """Records with the prompt and the response texts of an earlier one."""

    merged_responses: int = 0
    """Responses with the text of another one of their record."""

    too_few_responses: int = 0
    """Records left with fewer than two responses."""

    dropped_by_weight: int = 0
    """Records that a weight's fraction left out."""

    MAX_LISTED = 5

    def add_malformed(self, row: MalformedRow) -> None:
        self.malformed += 1
        if len(self.first_malformed) < self.MAX_LISTED:
            self.first_malformed.append(row)


def read_source(
    spec: DataSpec, *, strict: bool = False, limit: int | None = None, streaming: bool = True
) -> tuple[list[PreferenceRecord], SourceReport]:
    """The first `limit` records of a source, in its order, and what was left out.

    A malformed row is skipped and counted; under strict it is a ValueError that names file, line and
    reason. streaming=False keeps a copy in the cache of `datasets`.
    """
    report = SourceReport(spec.label)
    drafts = _joined(_drafts(spec, report, strict, streaming), SOURCES[spec.name].join_rows)
    records = list(islice(_records(drafts, spec, report), limit))
    report.records = len(records)
    return records, report


def scored_dimensions(records: Iterable[PreferenceRecord]) -> tuple[str, ...]:
    """Every dimension that some response has a score for, in the order of their first appearance."""
    return tuple(dict.fromkeys(d for record in records for r in record.responses for d in r.scores))


def _records(
    drafts: Iterable[ParsedRow], spec: DataSpec, report: SourceReport
) -> Iterator[PreferenceRecord]:
    seen = set()
    for draft in drafts:
        responses = _distinct(draft.responses)
        report.merged_responses += len(draft.responses) - len(responses)
        if len(responses) < 2:
            report.too_few_responses += 1
            continue
        identity = draft.prompt, frozenset(response.text for response in responses)
        if identity in seen:
            report.duplicate_records += 1
            continue
        seen.add(identity)
        record = PreferenceRecord(
            prompt=list(draft.prompt),
            responses=responses,
            source=spec.label,
            scorers=dict(draft.scorers),
        )
        if repeats_per_epoch(spec.weight, record.key):
            yield record
        else:
            report.dropped_by_weight += 1


def _distinct(responses: list[Response]) -> list[Response]:
    """Responses of the same text as one, with the mean of their scores."""
    same: dict[str, list[Response]] = {}
    for response in responses:
        same.setdefault(response.text, []).append(response)
    return [_merged(group) for group in same.values()]


def _merged(group: list[Response]) -> Response:
    names = dict.fromkeys(name for response in group for name in response.scores)
    means = {n: fmean(r.scores[n] for r in group if n in r.scores) for n in names}
    return group[0].model_copy(update={"scores": means}) if len(group) > 1 else group[0]


def _joined(drafts: Iterator[ParsedRow], join: str) -> Iterator[ParsedRow]:
    """Drafts that share a prompt as one; "all" reads everything before the first."""
    if join == "all":
        together: dict[tuple[Message, ...], list[ParsedRow]] = {}
        for draft in drafts:
            together.setdefault(draft.prompt, []).append(draft)
        groups: Iterable[list[ParsedRow]] = together.values()
    elif join == "next":
        groups = (list(group) for _, group in groupby(drafts, key=lambda draft: draft.prompt))
    else:
        groups = ([draft] for draft in drafts)
    for group in groups:
        responses = [response for draft in group for response in draft.responses]
        yield ParsedRow(group[0].prompt, responses, group[0].scorers)


def _drafts(
    spec: DataSpec, report: SourceReport, strict: bool, streaming: bool
) -> Iterator[ParsedRow]:
    source = SOURCES[spec.name]
    folder = source.subfolder_of.get(spec.dimensions[0])
    where = spec.name, spec.path, str(source.hub_name), folder, source.split
    for file, line, row in read_rows(*where, streaming=streaming):
        report.read += 1
        try:
            draft = _draft(row, spec)
        except (KeyError, ValueError, RecursionError) as error:
            skipped = MalformedRow(file, line, _reason(error))
            if strict:
                raise ValueError(
                    f"{file}, line {line}: {skipped.reason}. Correct it, or leave strict out to "
                    "skip and count such records"
                ) from error
            report.add_malformed(skipped)
        else:
            yield draft


def _draft(row: Any, spec: DataSpec) -> ParsedRow:
    row = json.loads(row) if isinstance(row, str) else row
    if not isinstance(row, dict):
        raise ValueError(f"{short_repr(row)} is not a JSON object")
    draft = SOURCES[spec.name].parse_row(row, spec.dimensions)
    if draft.prompt[-1].role != "user":
        raise ValueError(f"the prompt must end with a user turn, not {draft.prompt[-1].role}")
    for name in {name for response in draft.responses for name in response.scores}:
        if not DIMENSION_NAME.fullmatch(name):
            raise ValueError(f"dimension {short_repr(name)}: letters, digits, - and _ are accepted")
    return draft


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else first["msg"]
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at character {error.pos + 1}"
    if isinstance(error, KeyError):
        return f"column {error} is missing"
    return str(error)
