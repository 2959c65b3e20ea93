"""Which batch slots hold guided requests, and the guided rows of one step as tensors.

In: GuidedRequests, assigned to slot numbers. Out: GuidedRows, rebuilt only when the slots or the order of
the logits rows changed: a batch of hundreds changes in most steps, so a request's numbers are laid into a
table when it enters, and a step gathers. Imports no vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pad_vllm.engines.reward_engine import GuidedRequest

# Rows of _SlotNumbers; the weights follow.
_IS_GUIDED, _EXPLAIN, _NUM_WEIGHTS = range(3)
_OUTCOME_ROW, _IGNORES_EOS, _TOP_K, _NO_REPEAT, _BETA, _MIN_P, _LOOP_PRICE = range(3, 10)
_FIRST_FLOAT, _FIRST_WEIGHT = _BETA, 10

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
    loop_price: Tensor  # [G] float32, logits a token of a repeated n-gram, 0 for off
    slots: Tensor  # [G] int64, batch slot of each row
    outcome_rows: Tensor  # [G] int64, GuidedRequest.outcome_row
    ignores_eos: Tensor  # [G] bool, GuidedRequest.ignores_eos
    instruction_weight: Tensor | None  # [G] float32, as in StepCandidates
    max_top_k: int  # the largest of top_k, on the host
    max_no_repeat: int  # the largest of no_repeat, on the host
    max_loop_price: float  # the largest of loop_price, on the host
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
        self._numbers = _SlotNumbers()
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
            self._numbers.write(slot, request)

    def remove(self, slot: int) -> None:
        """The slot's request leaves."""
        self._rows_by_layout.clear()
        self._numbers.clear(slot)
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
        rows = self._numbers.guided(slots)
        if not len(rows):
            return None
        row_slots = slots[rows]
        requests = tuple(map(self._requests.__getitem__, row_slots.tolist()))
        numbers = self._numbers.of(row_slots)
        explained = numbers[_EXPLAIN].nonzero()[0]
        integers = self._to_device(
            np.stack((rows, row_slots, *numbers[_OUTCOME_ROW:_FIRST_FLOAT])), np.int64
        )
        # Engines set this one after the request entered its slot.
        instruction_weights = [request.instruction_weight for request in requests]
        floats = self._to_device(
            np.stack((instruction_weights, *numbers[_FIRST_FLOAT:])), np.float32
        )
        return GuidedRows(
            rows=integers[0],
            slots=integers[1],
            outcome_rows=integers[2],
            ignores_eos=integers[3].bool(),
            top_k=integers[4],
            no_repeat=integers[5],
            instruction_weight=floats[0] if any(instruction_weights) else None,
            beta=floats[1],
            min_p=floats[2],
            loop_price=floats[3],
            w=floats[4:].T,
            max_top_k=int(numbers[_TOP_K].max()),
            max_no_repeat=int(numbers[_NO_REPEAT].max()),
            max_min_p=float(numbers[_MIN_P].max()),
            max_loop_price=float(numbers[_LOOP_PRICE].max()),
            explained_indices=tuple(explained.tolist()),
            explained_indices_on_device=self._to_device(explained, np.int64),
            requests=requests,
        )

    def _to_device(self, values: np.ndarray, dtype: type) -> Tensor:
        """One transfer that the host does not wait for; rows are contiguous."""
        tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=dtype))
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


class _SlotNumbers:
    """What the guidance of each slot's request says, as one column of numbers a slot. Grows as needed."""

    def __init__(self) -> None:
        # Integers are exact in float64.
        self._columns = np.zeros((_FIRST_WEIGHT, 1))

    def write(self, slot: int, request: GuidedRequest) -> None:
        """Set the slot's column."""
        guidance, weights = request.guidance, request.guidance.weights
        num_rows, num_slots = self._columns.shape
        missing = max(_FIRST_WEIGHT + len(weights) - num_rows, 0), max(slot + 1 - num_slots, 0)
        if any(missing):
            # Twice the slots, so that few requests pay for it.
            padding = (0, missing[0]), (0, missing[1] and missing[1] + num_slots)
            self._columns = np.pad(self._columns, padding)
        column = self._columns[:, slot]
        column[:] = 0.0
        column[_IS_GUIDED], column[_EXPLAIN] = 1.0, guidance.explain
        column[_OUTCOME_ROW], column[_IGNORES_EOS] = request.outcome_row, request.ignores_eos
        column[_TOP_K], column[_NO_REPEAT] = guidance.top_k, guidance.no_repeat
        column[_NUM_WEIGHTS] = len(weights)
        column[_BETA], column[_MIN_P] = guidance.beta, guidance.min_p
        column[_LOOP_PRICE] = guidance.loop_price
        column[_FIRST_WEIGHT : _FIRST_WEIGHT + len(weights)] = weights

    def clear(self, slot: int) -> None:
        """The slot has no guided request any more."""
        if slot < self._columns.shape[1]:
            self._columns[_IS_GUIDED, slot] = 0.0

    def guided(self, slots: np.ndarray) -> np.ndarray:
        """[G] int64: indices into `slots` [R] of those with a guided request."""
        known = slots < self._columns.shape[1]
        return np.flatnonzero(self._columns[_IS_GUIDED, np.where(known, slots, 0)] * known)

    def of(self, slots: np.ndarray) -> np.ndarray:
        """[N, G] float64: the columns of G guided slots, with as many weights as one of them has."""
        num_weights = int(self._columns[_NUM_WEIGHTS, slots].max())
        return self._columns[: _FIRST_WEIGHT + num_weights, slots]
