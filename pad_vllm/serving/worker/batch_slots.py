"""Which batch slots hold guided requests, and the guided rows of one step as tensors.

In: GuidedRequests, assigned to slot numbers. Out: GuidedRows, rebuilt only when the slots or the order of
the logits rows changed. Imports no vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pad_vllm.engines.reward_engine import GuidedRequest

_MAX_CACHED_LAYOUTS = 8  # more than one: a step may come in slices, each with its own rows


@dataclass(frozen=True)
class GuidedRows:
    """The guided logits rows of one step, or of one slice of it: G rows, D dimensions."""

    rows: Tensor  # [G] int64, ascending: indices of logits rows
    w: Tensor  # [G, D] float32, weights of the dimensions; D is the most that one of the rows has
    beta: Tensor  # [G] float32, strength
    top_k: Tensor  # [G] int64, number of candidates
    no_repeat: Tensor  # [G] int64, n of the no-repeat guard, 0 for off
    min_p: Tensor  # [G] float32, share of the best candidate's probability, 0 for off
    slots: Tensor  # [G] int64, batch slot of each row
    outcome_rows: Tensor  # [G] int64, GuidedRequest.outcome_row
    instruction_weight: Tensor | None  # [G] float32, as in StepCandidates
    max_top_k: int  # the largest of top_k, on the host
    max_no_repeat: int  # the largest of no_repeat, on the host
    max_min_p: float  # the largest of min_p, on the host
    explained_indices: tuple[int, ...]  # E indices into the G rows: their requests set pad_explain
    explained_indices_on_device: Tensor  # [E] int64, the same
    requests: tuple[GuidedRequest, ...]  # the request of each row


class BatchSlots:
    """The guided requests by batch slot. Slots are reused: `assign` replaces what a slot held."""

    def __init__(
        self, device: torch.device, on_left_batch: Callable[[GuidedRequest], None]
    ) -> None:
        """on_left_batch: called with each request that leaves its slot."""
        self._device, self._on_left_batch = device, on_left_batch
        self._requests: dict[int, GuidedRequest] = {}
        self._rows_by_layout: dict[bytes, GuidedRows | None] = {}

    @property
    def guided_requests(self) -> Mapping[int, GuidedRequest]:
        """The guided requests by slot, a live view."""
        return self._requests

    def __len__(self) -> int:
        return len(self._requests)

    def assign(self, slot: int, request: GuidedRequest | None) -> None:
        """A request enters the slot; None for an unguided one."""
        self.remove(slot)
        if request is not None:
            self._requests[slot] = request

    def remove(self, slot: int) -> None:
        """The slot's request leaves."""
        self._rows_by_layout.clear()
        if (request := self._requests.pop(slot, None)) is not None:
            self._on_left_batch(request)

    def move(self, source: int, target: int, *, swap: bool) -> None:
        """Move the request of one slot to another.

        Args:
            source: the slot that it leaves.
            target: the slot that it enters.
            swap: whether the target's request moves to the source. Otherwise it leaves the batch.
        """
        moved, replaced = self._requests.pop(source, None), self._requests.pop(target, None)
        if replaced is not None and not swap:
            self._on_left_batch(replaced)
        self.assign(source, replaced if swap else None)
        self.assign(target, moved)

    def clear(self) -> None:
        """All requests leave."""
        for slot in list(self._requests):
            self.remove(slot)

    def guided_rows(self, slots: np.ndarray) -> GuidedRows | None:
        """The guided rows of a step; None if there are none.

        slots [R]: the slot of each logits row. A slot has several rows where drafts are verified.
        """
        if not self._requests:
            return None
        layout = slots.tobytes()
        if layout not in self._rows_by_layout:
            if len(self._rows_by_layout) == _MAX_CACHED_LAYOUTS:
                self._rows_by_layout.clear()
            self._rows_by_layout[layout] = self._build_rows(slots)
        return self._rows_by_layout[layout]

    def _build_rows(self, slots: np.ndarray) -> GuidedRows | None:
        rows_and_requests = [
            (row, self._requests[slot])
            for row, slot in enumerate(slots.tolist())
            if slot in self._requests
        ]
        if not rows_and_requests:
            return None
        guidances = [request.guidance for _, request in rows_and_requests]
        width = max(len(g.weights) for g in guidances)
        weights = [(*g.weights, *(0.0,) * (width - len(g.weights))) for g in guidances]
        instruction_weights = [request.instruction_weight for _, request in rows_and_requests]
        explained = tuple(index for index, g in enumerate(guidances) if g.explain)
        rows, row_slots, outcome_rows, top_k, no_repeat = self._to_device(
            [
                [row for row, _ in rows_and_requests],
                [int(slots[row]) for row, _ in rows_and_requests],
                [request.outcome_row for _, request in rows_and_requests],
                [g.top_k for g in guidances],
                [g.no_repeat for g in guidances],
            ],
            torch.int64,
        ).unbind()
        floats = self._to_device(
            [
                *zip(*weights, strict=True),
                [g.beta for g in guidances],
                [g.min_p for g in guidances],
                instruction_weights,
            ],
            torch.float32,
        )
        return GuidedRows(
            rows=rows,
            w=floats[:width].T,
            beta=floats[width],
            top_k=top_k,
            no_repeat=no_repeat,
            min_p=floats[width + 1],
            instruction_weight=floats[width + 2] if any(instruction_weights) else None,
            slots=row_slots,
            outcome_rows=outcome_rows,
            max_top_k=max(g.top_k for g in guidances),
            max_no_repeat=max(g.no_repeat for g in guidances),
            max_min_p=max(g.min_p for g in guidances),
            explained_indices=explained,
            explained_indices_on_device=self._to_device([explained], torch.int64)[0],
            requests=tuple(request for _, request in rows_and_requests),
        )

    def _to_device(self, values: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
        """One transfer that the host does not wait for; row i is `values[i]`, contiguous."""
        tensor = torch.tensor(values, dtype=dtype)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)
