"""JSON lines on disk: read them, append them, and cut off what a kill left of the last one.

Every line is written and flushed whole, so that a file is never wrong but in its tail. Knows the one
spelling of a Record as a line; nothing of what is in it.
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
    """What parse makes of every line that is not blank; its ValueErrors get file and line."""
    with path.open("rb") as file:  # bytes: only \n ends a line, not the U+2028 of some text
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield parse(line)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {_reason(error)}") from error


def _reason(error: ValueError) -> str:
    """pydantic's first error as one line; other messages are one line already."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")


def repair_last_line(path: Path) -> None:
    """Cut off an incomplete last line; a missing file is created empty, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with path.open("rb+") as file:
        whole, torn = 0, b""
        for line in file:
            torn = b"" if line.endswith(b"\n") else line
            whole += len(line) - len(torn)
        if _is_json(torn):  # complete but for its newline, as some editors leave it
            file.write(b"\n")
        else:
            file.truncate(whole)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


@contextmanager
def line_appender(path: Path) -> Iterator[Callable[[str], None]]:
    """A function that appends a line and flushes it at once. Call `mend` first."""
    with path.open("a", encoding="utf-8", newline="\n") as file:

        def write(line: str) -> None:
            file.write(line + "\n")
            file.flush()

        yield write


def record_to_line(record: PreferenceRecord) -> str:
    """A record as its line: without defaults, a single user's turn as a string."""
    line = record.model_dump(mode="json", exclude_defaults=True)
    if [message["role"] for message in line["prompt"]] == ["user"]:
        line["prompt"] = line["prompt"][0]["content"]
    return json.dumps(line, ensure_ascii=False)
