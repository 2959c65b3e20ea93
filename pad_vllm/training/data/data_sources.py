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

from pad_vllm.adapter.manifest import DIMENSION
from pad_vllm.training.data.dataset_rows import FORMATS, rows
from pad_vllm.training.data.preference_record import Message, Record, Response, fold
from pad_vllm.training.data.published_dataset_columns import SOURCES, Draft
from pad_vllm.wording import did_you_mean, listed, show

_FORM = "NAME[:DIMENSION][=PATH][@WEIGHT], as in helpsteer2 or hh-rlhf:harmless=hh.jsonl.gz@0.5"


@dataclass(frozen=True)
class Spec:
    """A source as users ask for it."""

    name: str
    dimensions: tuple[str, ...]
    path: Path | None = None
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Spec:
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
        if (has_path and not path) or (not has_path and SOURCES[name].hub is None):
            raise ValueError(
                f"data {text!r}: {name} has to be given a file or folder of {listed(FORMATS)}; "
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
    names, most = tuple(given.split(",")), SOURCES[source].most_names
    if not most:
        raise ValueError(
            f"data {text!r}: {source} names its dimensions itself "
            f"({listed(SOURCES[source].dimensions)}); leave :{given} out"
        )
    if (
        len(set(names)) < len(names)
        or len(names) > most
        or not all(map(DIMENSION.fullmatch, names))
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


def weights(specs: Iterable[Spec]) -> dict[str, float]:
    """Label -> weight; ValueError where two specs read the same data."""
    weight_of: dict[str, float] = {}
    for spec in specs:
        if spec.label in weight_of:
            raise ValueError(
                f"data {spec.label!r} is given twice; give it once, with a weight: {spec.label}@2"
            )
        weight_of[spec.label] = spec.weight
    return weight_of


def repeats(weight: float, key: str) -> int:
    """How often an epoch sees a prompt: the weight's whole part, and once more for its fraction of keys.

    The hash is salted, so that this choice is independent of the split, which hashes the key alone.
    """
    return math.floor(weight) + (fold(f"weight\0{key}") < weight - math.floor(weight))


@dataclass(frozen=True)
class Skipped:
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

    kept: int = 0
    """Records; rows that share a prompt may be joined into one."""

    skipped: int = 0
    first_skipped: list[Skipped] = field(default_factory=list)
    """At most FIRST of them."""

    duplicates: int = 0
    """Records with the prompt and the response texts of an earlier one."""

    merged: int = 0
    """Responses with the text of another one of their record."""

    single: int = 0
    """Records left with fewer than two responses."""

    left_out: int = 0
    """Records that a weight's fraction left out."""

    FIRST = 5

    def skip(self, skipped: Skipped) -> None:
        self.skipped += 1
        if len(self.first_skipped) < self.FIRST:
            self.first_skipped.append(skipped)


def read(
    spec: Spec, *, strict: bool = False, limit: int | None = None, streaming: bool = True
) -> tuple[list[Record], SourceReport]:
    """The first `limit` records of a source, in its order, and what was left out.

    A malformed row is skipped and counted; under strict it is a ValueError that names file, line and
    reason. streaming=False keeps a copy in the cache of `datasets`.
    """
    report = SourceReport(spec.label)
    drafts = _joined(_drafts(spec, report, strict, streaming), SOURCES[spec.name].join)
    records = list(islice(_records(drafts, spec, report), limit))
    report.kept = len(records)
    return records, report


def dimensions(records: Iterable[Record]) -> tuple[str, ...]:
    """Every dimension that some response has a score for, in the order of their first appearance."""
    return tuple(dict.fromkeys(d for record in records for r in record.responses for d in r.scores))


def _records(drafts: Iterable[Draft], spec: Spec, report: SourceReport) -> Iterator[Record]:
    seen = set()
    for draft in drafts:
        responses = _distinct(draft.responses)
        report.merged += len(draft.responses) - len(responses)
        if len(responses) < 2:
            report.single += 1
            continue
        identity = draft.prompt, frozenset(response.text for response in responses)
        if identity in seen:
            report.duplicates += 1
            continue
        seen.add(identity)
        record = Record(
            prompt=list(draft.prompt),
            responses=responses,
            source=spec.label,
            scorers=dict(draft.scorers),
        )
        if repeats(spec.weight, record.key):
            yield record
        else:
            report.left_out += 1


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


def _joined(drafts: Iterator[Draft], join: str) -> Iterator[Draft]:
    """Drafts that share a prompt as one; "all" reads everything before the first."""
    if join == "all":
        together: dict[tuple[Message, ...], list[Draft]] = {}
        for draft in drafts:
            together.setdefault(draft.prompt, []).append(draft)
        groups: Iterable[list[Draft]] = together.values()
    elif join == "next":
        groups = (list(group) for _, group in groupby(drafts, key=lambda draft: draft.prompt))
    else:
        groups = ([draft] for draft in drafts)
    for group in groups:
        responses = [response for draft in group for response in draft.responses]
        yield Draft(group[0].prompt, responses, group[0].scorers)


def _drafts(spec: Spec, report: SourceReport, strict: bool, streaming: bool) -> Iterator[Draft]:
    source = SOURCES[spec.name]
    folder = source.data_dirs.get(spec.dimensions[0])
    where = spec.name, spec.path, str(source.hub), folder, source.split
    for file, line, row in rows(*where, streaming=streaming):
        report.read += 1
        try:
            draft = _draft(row, spec)
        except (KeyError, ValueError, RecursionError) as error:
            skipped = Skipped(file, line, _reason(error))
            if strict:
                raise ValueError(
                    f"{file}, line {line}: {skipped.reason}. Correct it, or leave strict out to "
                    "skip and count such records"
                ) from error
            report.skip(skipped)
        else:
            yield draft


def _draft(row: Any, spec: Spec) -> Draft:
    row = json.loads(row) if isinstance(row, str) else row
    if not isinstance(row, dict):
        raise ValueError(f"{show(row)} is not a JSON object")
    draft = SOURCES[spec.name].parse(row, spec.dimensions)
    if draft.prompt[-1].role != "user":
        raise ValueError(f"the prompt must end with a user turn, not {draft.prompt[-1].role}")
    for name in {name for response in draft.responses for name in response.scores}:
        if not DIMENSION.fullmatch(name):
            raise ValueError(f"dimension {show(name)}: letters, digits, - and _ are accepted")
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
