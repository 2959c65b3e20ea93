"""What a part of a run will take, said before it begins: tokens to read, bytes to keep on the disk.

In: sizes. Out: a line of text, or a ValueError where the disk has no room. The time is said by the log, from
the speed of the first batch on (loop/training_log.py).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

GIB = 2**30

_WAYS_OUT = (
    "Name another folder (--cache), take less data (--limit, --max-response, or `@SHARE` of a source), run "
    "the layers below the fork again in every step (--cache-gib), or compute everything again in every "
    "epoch (--uncached)"
)


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
        free = free_bytes(folder)
        needed, room = self.num_bytes / GIB, free / GIB
        if self.num_bytes > free:
            raise ValueError(
                f"{label}: {needed:.1f} GiB would be kept in {folder}, and its disk has {room:.1f} GiB left. "
                f"{_WAYS_OUT}"
            )
        kept = f"{_three_digits(needed)} GiB to keep of {room:.0f} GiB"
        return f"{label}: {self.tokens:,} tokens to read, {kept}"


def require_within(limit_gib: float, needed: WorkEstimate) -> None:
    """Raise ValueError where what must be kept on the disk is more than a budget.

    Args:
        limit_gib: The budget, --cache-gib.
        needed: Of the whole run.
    """
    if needed.num_bytes > limit_gib * GIB:
        raise ValueError(
            f"--cache-gib {limit_gib:g}: what is read in every epoch takes {needed.num_bytes / GIB:.2f} GiB. "
            f"Raise it, or: {_WAYS_OUT}"
        )


def _three_digits(gib: float) -> str:
    return f"{gib:.3g}" if gib < 100 else f"{gib:,.0f}"


def free_bytes(folder: Path) -> int:
    """Left on the folder's disk."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    """The folder, or the first one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
