"""Digests of what data is read: a file's bytes, or the rows of a data set of the hub in their order.

In: a file, or rows. Out: `sha256:...`. Knows nothing of what rows mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def file_digest(path: Path) -> str:
    """sha256 of a file's content."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return f"sha256:{sha256.hexdigest()}"


class RowDigest:
    """A digest of rows that are read once: `over` passes them on."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def over(self, rows: Iterable[Any]) -> Iterator[Any]:
        """The rows, each added to the digest as it is read."""
        for row in rows:
            self._sha256.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
            yield row

    def value(self) -> str:
        """The digest of the rows read so far."""
        return f"sha256:{self._sha256.hexdigest()}"
