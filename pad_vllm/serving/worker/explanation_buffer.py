"""What the candidates would have earned in the last steps of the answers that are explained.

In: the rows of a step, on the device. Out: the steps of one answer, on the host, once it ended: until then
nothing waits for the device. They stand in a table of fixed size, which is made when the first one comes; the
oldest steps make room for new ones, whoever they belong to. Imports no vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pad_vllm.guidance_outcome import ExplainedStep

_BYTES = 32 << 20


class ExplanationBuffer:
    """Steps by ticket (answers.py); width: the most candidates that a row may ask for."""

    def __init__(self, device: torch.device, width: int) -> None:
        self._device, self._width = device, width
        self._size = max(_BYTES // (8 * (width + 1)), 1)
        self._tables: tuple[Tensor, Tensor] | None = None
        self._next = 0
        self._owners: dict[int, int] = {}  # row -> ticket
        self._rows: dict[int, dict[int, None]] = {}  # ticket -> its rows, in their order

    def add(self, tickets: Sequence[int], place: Tensor, ids: Tensor, paid: Tensor) -> None:
        """place [E] tokens that the answers have, ids, paid [E, K] candidates and what they would earn."""
        rows = [self._row(ticket) for ticket in tickets]
        where = torch.tensor(rows).to(self._device, non_blocking=True)
        wide = self._width - ids.shape[1]
        numbers = torch.nn.functional.pad(ids.int(), (0, wide), value=-1)
        integers, rewards = self._made()
        integers.index_copy_(0, where, torch.cat([place.int().unsqueeze(1), numbers], 1))
        rewards.index_copy_(0, where, torch.nn.functional.pad(paid.float(), (0, wide)))

    def _made(self) -> tuple[Tensor, Tensor]:
        if self._tables is None:
            width, on = self._width, self._device
            self._tables = (
                torch.zeros(self._size, width + 1, dtype=torch.int32, device=on),
                torch.zeros(self._size, width, device=on),
            )
        return self._tables

    def _row(self, ticket: int) -> int:
        row, self._next = self._next, (self._next + 1) % self._size
        if (owner := self._owners.pop(row, None)) is not None:
            del self._rows[owner][row]
        self._owners[row] = ticket
        self._rows.setdefault(ticket, {})[row] = None
        return row

    def steps(self, ticket: int) -> list[ExplainedStep]:
        """All that are still there, in their order."""
        rows = list(self._rows.get(ticket, ()))
        if not rows or self._tables is None:
            return []
        integers, rewards = (table[rows].tolist() for table in self._tables)
        return [
            (place, known, paid[: len(known)])
            for (place, *ids), paid in zip(integers, rewards, strict=True)
            for known in [[token for token in ids if token >= 0]]
        ]

    def drop(self, ticket: int) -> None:
        """Nobody will ask for it."""
        for row in self._rows.pop(ticket, ()):
            del self._owners[row]
