"""Per-request guidance by batch slot, and the guided rows of one step. Imports no vLLM.

In: `Request`s put at slot numbers. Out: a Selection of tensors for the step's rows, rebuilt only
when the slots or the row order changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pad_vllm.engines.reward_engine import GuidedRequest

_LAYOUTS = 8  # that are kept: a step may come in slices, each with rows of its own


@dataclass(frozen=True)
class GuidedRows:
    """The guided rows of a step; G of them, D dimensions."""

    rows: Tensor  # [G] int64, ascending
    w: Tensor  # [G, D] float32; D the most that one of them has
    beta: Tensor  # [G] float32
    top_k: Tensor  # [G] int64
    no_repeat: Tensor  # [G] int64
    min_p: Tensor  # [G] float32
    slots: Tensor  # [G] int64
    outcome_rows: Tensor  # [G] int64, Request.ticket
    k_max: int  # the largest of top_k, on the host
    max_no_repeat: int  # the largest of no_repeat
    max_min_p: float  # the largest of min_p
    explaining: tuple[int, ...]  # places among the G of those whose answers are explained
    explained: Tensor  # the same on the device, int64
    requests: tuple[GuidedRequest, ...]  # of the rows


class BatchSlots:
    """Which slots are guided, and how. Slots are reused: `put` overwrites all of one."""

    def __init__(self, device: torch.device, left: Callable[[GuidedRequest], None]) -> None:
        """left: called with every request that leaves."""
        self._device, self._left = device, left
        self._guided: dict[int, GuidedRequest] = {}
        self._known: dict[bytes, GuidedRows | None] = {}

    @property
    def guided_requests(self) -> Mapping[int, GuidedRequest]:
        """The guided requests by slot, as they are now."""
        return self._guided

    def __len__(self) -> int:
        return len(self._guided)

    def put(self, slot: int, request: GuidedRequest | None) -> None:
        """A request enters the slot; None is an unguided one."""
        self.drop(slot)
        if request is not None:
            self._guided[slot] = request

    def drop(self, slot: int) -> None:
        """The slot's request left."""
        self._known.clear()
        if (request := self._guided.pop(slot, None)) is not None:
            self._left(request)

    def move(self, source: int, target: int, *, swap: bool) -> None:
        """The request at `source` goes to `target`; with swap, that one's comes back."""
        moved, other = self._guided.pop(source, None), self._guided.pop(target, None)
        if other is not None and not swap:
            self._left(other)
        self.put(source, other if swap else None)
        self.put(target, moved)

    def clear(self) -> None:
        """All requests left."""
        for slot in list(self._guided):
            self.drop(slot)

    def select(self, slots: np.ndarray) -> GuidedRows | None:
        """The guided rows; slots [rows]: row i is slot `slots[i]`, which may have several. None when there
        are none.
        """
        if not self._guided:
            return None
        key = slots.tobytes()
        if key not in self._known:
            if len(self._known) == _LAYOUTS:
                self._known.clear()
            self._known[key] = self._build(slots)
        return self._known[key]

    def _build(self, slots: np.ndarray) -> GuidedRows | None:
        pairs = [
            (row, self._guided[slot])
            for row, slot in enumerate(slots.tolist())
            if slot in self._guided
        ]
        if not pairs:
            return None
        guided = [request.guidance for _, request in pairs]
        width = max(len(g.weights) for g in guided)
        weights = [(*g.weights, *(0.0,) * (width - len(g.weights))) for g in guided]
        explaining = tuple(place for place, g in enumerate(guided) if g.explain)
        integers = [
            [row for row, _ in pairs],
            [int(slots[row]) for row, _ in pairs],
            [request.outcome_row for _, request in pairs],
            [g.top_k for g in guided],
            [g.no_repeat for g in guided],
        ]
        floats = [*zip(*weights, strict=True), [g.beta for g in guided], [g.min_p for g in guided]]
        rows, at, tickets, top_k, no_repeat = self._there(integers, torch.int64).unbind()
        numbers = self._there(floats, torch.float32)
        return GuidedRows(
            rows=rows,
            w=numbers[:width].T,
            beta=numbers[width],
            top_k=top_k,
            no_repeat=no_repeat,
            min_p=numbers[width + 1],
            slots=at,
            outcome_rows=tickets,
            k_max=max(g.top_k for g in guided),
            max_no_repeat=max(g.no_repeat for g in guided),
            max_min_p=max(g.min_p for g in guided),
            explaining=explaining,
            explained=self._there([explaining], torch.int64)[0],
            requests=tuple(request for _, request in pairs),
        )

    def _there(self, values: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
        """On the device, in one transfer that nothing waits for; each of the sequences contiguous."""
        made = torch.tensor(values, dtype=dtype)
        if self._device.type == "cuda":
            made = made.pin_memory()
        return made.to(self._device, non_blocking=True)
