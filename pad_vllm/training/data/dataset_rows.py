"""Rows of a local file, a folder or a data set of the hub, all through `datasets`.

In: where the rows lie. Out: file or hub name, line from 1, and the line's text or the row. Rows are streamed:
nothing is copied into the cache of `datasets`. Local JSON comes as lines of text, because the JSON reader of
`datasets` stops at a malformed line and takes a missing key for null. Knows nothing of what rows mean.
"""

from __future__ import annotations

import glob
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pad_vllm.wording import listed

FILE_FORMATS = {
    ".jsonl": "text",
    ".jsonl.gz": "text",
    ".json": "text",
    ".json.gz": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""Ending of a local file -> the builder of `datasets` that reads it."""


def read_rows(
    source_name: str,
    path: Path | None,
    hub_name: str,
    subfolder: str | None,
    split: str,
    revision: str | None = None,
) -> Iterator[tuple[str, int, Any]]:
    """The rows of `path`, or of the hub's data set if it is None.

    Args:
        source_name: what users call the source, for messages.
        path: a local file or folder.
        hub_name: the data set's name on the hub.
        subfolder: the part of the hub's repository, or of a local folder that has it, to read.
        split: the hub's split; of a folder, only the files that have it in their names, if any has.
        revision: the hub's commit; None: the newest.

    Yields:
        (file or hub name, line or row number from 1, a line's text or a parsed row). Blank lines are
        counted and left out.

    Raises:
        ValueError: no such file, or a broken one.
        OSError: the hub could not be opened.
    """
    if path is None:
        dataset = _hub_rows(source_name, hub_name, subfolder, split, revision)
        yield from ((hub_name, number, row) for number, row in enumerate(dataset, start=1))
        return
    for file in _files(path, subfolder, split):
        for number, row in enumerate(_file_rows(file), start=1):
            if not isinstance(row, str) or row.strip():
                yield str(file), number, row


def dataset_revision(hub_name: str) -> str | None:
    """The newest commit of a data set on the hub; None if the hub does not say."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(hub_name, timeout=10).sha
    except (OSError, ValueError):
        return None


def _hub_rows(
    source_name: str, hub_name: str, subfolder: str | None, split: str, revision: str | None
) -> Any:
    from datasets import load_dataset

    pinned = {} if revision is None else {"revision": revision}
    try:
        return load_dataset(hub_name, data_dir=subfolder, split=split, streaming=True, **pinned)
    except OSError as error:
        raise OSError(
            f"data {source_name!r}: {hub_name} could not be opened ({error}). Without the hub, fetch "
            f"its files elsewhere and give them as {source_name}=PATH"
        ) from error


def _format(file: Path) -> str | None:
    return next(
        (builder for ending, builder in FILE_FORMATS.items() if file.name.endswith(ending)), None
    )


def _files(path: Path, subfolder: str | None, split: str) -> list[Path]:
    """The files of `path`; of a folder, those with the split in their names, if any has it."""
    if path.is_dir():
        root = path / subfolder if subfolder and (path / subfolder).is_dir() else path
        files = sorted(file for file in root.rglob("*") if file.is_file() and _format(file))
        # Beside its .arrow files save_to_disk leaves .json files that hold no rows.
        files = [file for file in files if _format(file) == "arrow"] or files
        files = [file for file in files if split in str(file.relative_to(root))] or files
    else:
        files = [path] if path.is_file() and _format(path) else []
    if not files:
        raise ValueError(
            f"data {str(path)!r} is no file or folder of {listed(FILE_FORMATS)}; correct the path "
            "(a weight after its @ is a number)"
        )
    return files


def _file_rows(file: Path) -> Iterator[Any]:
    """Text lines or parsed rows of one file."""
    from datasets import load_dataset

    builder = str(_format(file))
    # A byte that is not UTF-8 becomes \xff, which is no JSON: its line is malformed, not changed.
    text = {"encoding": "utf-8-sig", "encoding_errors": "backslashreplace"}
    options = text if builder == "text" else {}
    if not file.stat().st_size:
        return
    try:
        dataset = load_dataset(
            builder,
            data_files=[glob.escape(str(file))],
            split="train",
            streaming=True,
            **options,
        )
        if builder == "text":
            yield from _lines((row["text"] for row in dataset), file)
        else:
            yield from dataset
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise ValueError(
            f"data {str(file)!r} could not be read ({error}); replace it by an intact file"
        ) from error


def _lines(lines: Iterator[str], file: Path) -> Iterator[Any]:
    """The lines; of a .json file that is one array, its items."""
    first = next(lines, "")
    if ".jsonl" not in file.suffixes and first.lstrip().startswith("["):
        yield from json.loads("\n".join([first, *lines]))
    else:
        yield first
        yield from lines
