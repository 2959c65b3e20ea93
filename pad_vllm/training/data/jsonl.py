"""JSON lines on disk: read them, append them, and cut off an incomplete last line that a kill left.

Every line is written and flushed whole, so that only the last line of a file can be incomplete. Knows how a
`PreferenceRecord` is written as a line; nothing of what is in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from pad_vllm.training.data.preference_record import PreferenceRecord

T = TypeVar("T")


def read_lines(path: Path, parse: Callable[[bytes], T] = json.loads) -> Iterator[T]:
    """`parse` of every line that is not blank. A ValueError of `parse` is raised with file and line."""
    with path.open("rb") as file:  # bytes: only \n ends a line, not the U+2028 of some text
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield parse(line)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {_reason(error)}") from error


def read_records(path: Path) -> Iterator[PreferenceRecord]:
    """The records of a file. Raises ValueError, with file and line, for a line that is no record."""
    return read_lines(path, PreferenceRecord.model_validate_json)


def count_lines(path: Path) -> int:
    """The number of lines that are not blank."""
    return sum(1 for _ in read_lines(path, bytes))


def _reason(error: ValueError) -> str:
    return first_validation_error(error) if isinstance(error, ValidationError) else str(error)


def first_validation_error(error: ValidationError) -> str:
    """pydantic's first error as one line, "field: what is wrong"."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(map(str, first['loc']))}: {message}".removeprefix(": ")


def repair_last_line(path: Path) -> None:
    """Cut off an incomplete last line. A missing file is created empty, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with path.open("rb+") as file:
        length, incomplete = 0, b""
        for line in file:
            incomplete = b"" if line.endswith(b"\n") else line
            length += len(line) - len(incomplete)
        if _is_json(incomplete):  # complete but for its newline, as some editors leave it
            file.write(b"\n")
        else:
            file.truncate(length)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


@contextmanager
def line_appender(path: Path) -> Iterator[Callable[[str], None]]:
    """A function that appends a line and flushes it at once. Call `repair_last_line` first."""
    with path.open("a", encoding="utf-8", newline="\n") as file:

        def append(line: str) -> None:
            file.write(line + "\n")
            file.flush()

        yield append


def record_to_line(record: PreferenceRecord) -> str:
    """The record as a line: fields with their default left out, a single user message as a string."""
    line = record.model_dump(mode="json", exclude_defaults=True)
    if [message["role"] for message in line["prompt"]] == ["user"]:
        line["prompt"] = line["prompt"][0]["content"]
    return json.dumps(line, ensure_ascii=False)
