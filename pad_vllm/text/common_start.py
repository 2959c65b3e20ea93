"""How far two sequences of characters or tokens begin alike."""

from __future__ import annotations

from collections.abc import Sequence


def common_start_length(one: Sequence[object], other: Sequence[object]) -> int:
    """The number of items at the start of both that are equal."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
