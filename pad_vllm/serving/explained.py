"""What the candidates would have earned in every step of the answers that are explained.

In: the rows of a step, on the device. Out: the steps of one answer, on the host, once it ended: until then
nothing waits for the device. Imports no vLLM.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from pad_vllm.outcome import Step

_Row = tuple[Tensor, Tensor, Tensor]  # [] place, [K] ids, [K] rewards


class Explained:
    """Steps by ticket (answers.py)."""

    def __init__(self) -> None:
        self._rows: defaultdict[int, list[_Row]] = defaultdict(list)

    def add(self, tickets: Sequence[int], place: Tensor, ids: Tensor, paid: Tensor) -> None:
        """place [E] tokens that the answers have, ids, paid [E, K] candidates and what they would earn."""
        for ticket, *row in zip(tickets, place, ids, paid, strict=True):
            self._rows[ticket].append((row[0], row[1], row[2]))

    def steps(self, ticket: int) -> list[Step]:
        """All so far, in their order."""
        rows = self._rows.get(ticket)
        if not rows:
            return []
        # Three copies from the device, not three a step. A step has as many candidates as its batch wants.
        places = torch.stack([place for place, _, _ in rows]).tolist()
        ids, paid = (iter(torch.cat([row[i] for row in rows]).tolist()) for i in (1, 2))
        widths = [len(row[1]) for row in rows]
        return [
            (place, list(islice(ids, width)), list(islice(paid, width)))
            for place, width in zip(places, widths, strict=True)
        ]

    def drop(self, ticket: int) -> None:
        """Nobody will ask for it."""
        self._rows.pop(ticket, None)
