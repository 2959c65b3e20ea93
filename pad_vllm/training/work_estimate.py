"""What a part of a run will take, said before it begins: tokens to read, bytes to keep on the disk.

In: sizes. Out: a line of text, or a ValueError where the disk has no room. The time is said by the log, from
the speed of the first batch on (loop/training_log.py).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

_GIB = 2**30


class WorkEstimate(NamedTuple):
    """Of one part of a run, on all workers."""

    tokens: int
    """That the base reads."""

    num_bytes: int
    """That are kept on the disk."""

    def announcement(self, label: str, folder: Path) -> str:
        """What to say before it begins.

        Args:
            label: Of the part.
            folder: Where the bytes go.

        Raises:
            ValueError: The folder's disk has no room for them.
        """
        free = shutil.disk_usage(_existing(folder)).free
        needed, room = self.num_bytes / _GIB, free / _GIB
        if self.num_bytes > free:
            raise ValueError(
                f"{label}: {needed:.1f} GiB would be kept in {folder}, and its disk has {room:.1f} GiB left. "
                "Name another folder (--cache), take less data (--limit, --max-response, or `@SHARE` of a "
                "source), or compute it again in every epoch (--no-cached)"
            )
        return (
            f"{label}: {self.tokens:,} tokens to read, {needed:.2f} GiB to keep of {room:.0f} GiB"
        )


def _existing(folder: Path) -> Path:
    """The folder, or the first one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
