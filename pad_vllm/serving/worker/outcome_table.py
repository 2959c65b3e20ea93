"""The outcome of each guided answer: how many of its rows were guided or not, and whether PAD stopped it.

In: the guided rows of every step, and which of them stayed unguided. Out: an Outcome for each outcome key,
which the front end gives a request (vllm_api/patches/outcome_rpc.py). Counts stay on the device: only
`pop_outcomes` and `total_unguided_rows` wait for it. Imports no vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from pad_vllm.guidance_outcome import Outcome, unknown_outcome
from pad_vllm.serving.worker import device_buffers
from pad_vllm.serving.worker.batch_slots import GuidedRows
from pad_vllm.serving.worker.explanation_buffer import ExplanationBuffer
from pad_vllm.serving.worker.pending_steps import PendingSteps

_SPARE_ROWS = 4096  # for answers that ended and were not asked about yet

_UNGUIDED, _REASONING = 1, 2  # how a row was guided; 0: as asked
_NUM_KINDS = 3
_STOPPED = 3  # column behind those of the kinds


class OutcomeTable:
    """Counts by outcome row: an index into this table's device buffers, one for each request in the batch.

    An answer has several outcome rows with `n`, and a new one after each preemption.
    """

    def __init__(
        self, device: torch.device, max_batch_rows: int, max_candidates: int = 100
    ) -> None:
        """Start with no answers; buffers are allocated with the first.

        Args:
            device: where the logits are.
            max_batch_rows: the most requests that a batch has.
            max_candidates: the most candidates that a request may ask for (`max_top_k`).
        """
        self._device, self._size = device, 2 * max_batch_rows + _SPARE_ROWS
        self._pending = PendingSteps()  # outcome rows [G] int64, how each was guided [G]
        self._free_rows = list(range(self._size))
        self._key_of_row: dict[int, str | None] = {}  # None if the front end will not ask
        self._rows_of_key: dict[str, list[int]] = {}
        self._explanations = ExplanationBuffer(device, max_candidates)
        self._left_batch: dict[int, None] = {}  # rows whose request left the batch, oldest first
        self._unknown_keys: dict[str, None] = {}  # keys of unknown outcomes, oldest first

    @cached_property
    def _counts(self) -> Tensor:
        """[size, 4] int32: guided, unguided and reasoning rows; whether the answer was stopped."""
        return device_buffers.zeros(self._size, 4, dtype=torch.int32, device=self._device)

    @cached_property
    def _total_unguided(self) -> Tensor:
        return device_buffers.zeros(dtype=torch.int64, device=self._device)

    def assign_row(self, outcome_key: str | None) -> int:
        """A free outcome row for a request of the answer with this key; None if no one will ask for it."""
        if not self._free_rows:
            self.set_unknown(next(iter(self._left_batch)))
        self._count_pending()  # before the row belongs to another request
        row = self._free_rows.pop()
        self._counts[row] = 0
        if outcome_key in self._unknown_keys:
            outcome_key = None  # this row's counts alone would pass for the whole answer's
        self._key_of_row[row] = outcome_key
        if outcome_key is not None:
            self._rows_of_key.setdefault(outcome_key, []).append(row)
        return row

    def on_left_batch(self, outcome_row: int) -> None:
        """The row's request left the batch: the row is free once its outcome was asked for."""
        self._left_batch[outcome_row] = None
        if self._key_of_row[outcome_row] is None:
            self._release(outcome_row)

    def count_step(
        self, outcome_rows: Tensor, unguided: Tensor, reasoning: Tensor | None = None
    ) -> None:
        """Count one step. Does not wait for the device.

        Args:
            outcome_rows: [G] int64.
            unguided: [G] bool, rows that should have been guided and were not.
            reasoning: [G] bool, rows of reasoning that stays unguided, none of them `unguided`.
        """
        kind = unguided if reasoning is None else unguided + reasoning * _REASONING
        if self._pending.add(outcome_rows, kind):
            self._count_pending()

    def had_unguided_step(self, outcome_rows: Tensor) -> Tensor:
        """[G] bool: whether this row has had at least one unguided step. outcome_rows [G] int64.

        Counts the pending steps on the device; does not block the host.
        """
        self._count_pending()
        return self._counts[:, _UNGUIDED].index_select(0, outcome_rows) > 0

    def total_unguided_rows(self) -> int:
        """Rows that stayed unguided, over all steps. Waits for the device."""
        self._count_pending()
        return int(self._total_unguided)

    def _count_pending(self) -> None:
        if (pending := self._pending.take()) is not None:
            outcome_rows, kinds = pending
            is_of_kind = kinds.unsqueeze(-1) == torch.arange(_NUM_KINDS, device=kinds.device)
            self._counts[:, :_NUM_KINDS].index_add_(0, outcome_rows, is_of_kind.int())
            self._total_unguided += is_of_kind[:, _UNGUIDED].sum()

    def count_stopped(self, outcome_rows: Tensor, stopped: Tensor) -> None:
        """Count the rows that PAD ends in this step (`on_failure` "stop"): [G] int64, [G] bool."""
        self._counts[:, _STOPPED].index_add_(0, outcome_rows, stopped.int())

    def add_explanations(
        self, guided: GuidedRows, num_answer_tokens: Tensor, ids: Tensor, rewards: Tensor
    ) -> None:
        """Store the candidates' rewards of the rows whose requests set `pad_explain`.

        Args:
            guided: the G guided rows of the step.
            num_answer_tokens: [G] integers, tokens that each answer has before this step.
            ids: [G, K] int64, candidates.
            rewards: [G, K], what each candidate would get.
        """
        self._explanations.add(
            [guided.requests[index].outcome_row for index in guided.explained_indices],
            *(
                tensor.index_select(0, guided.explained_indices_on_device)
                for tensor in (num_answer_tokens, ids, rewards)
            ),
        )

    def pop_outcomes(self, outcome_keys: Sequence[str]) -> list[Outcome | None]:
        """Return the answers' outcomes and remove them; None where no answer had the key. Waits for the
        device, once for all of them (and once for each answer with `pad_explain`).
        """
        self._count_pending()
        rows = [row for key in outcome_keys for row in self._rows_of_key.get(key, ())]
        counts_of_row = dict(zip(rows, self._counts[rows].tolist() if rows else (), strict=True))
        return [self._pop_outcome(key, counts_of_row) for key in outcome_keys]

    def _pop_outcome(
        self, outcome_key: str, counts_of_row: Mapping[int, Sequence[int]]
    ) -> Outcome | None:
        """counts_of_row: outcome row -> its counts, on the host."""
        was_unknown = outcome_key in self._unknown_keys
        self._unknown_keys.pop(outcome_key, None)
        rows = self._rows_of_key.get(outcome_key)
        if rows is None:
            return unknown_outcome() if was_unknown else None
        counts = zip(*(counts_of_row[row] for row in rows), strict=True)
        guided, unguided, reasoning, stopped = map(sum, counts)
        outcome: Outcome = {
            "guided_tokens": guided,
            "unguided_tokens": unguided,
            "stopped": bool(stopped),
        }
        if reasoning:
            outcome["reasoning_rows"] = reasoning
        steps = [step for row in rows for step in self._explanations.steps(row)]
        self._remove_key(outcome_key)
        return {**outcome, "steps": steps} if steps else outcome

    def set_unknown(self, outcome_row: int) -> None:
        """Report this row's answer as unknown, also if more rows of the answer follow."""
        if (outcome_key := self._key_of_row[outcome_row]) is not None:
            self._remove_key(outcome_key)
            self._unknown_keys[outcome_key] = None
            if len(self._unknown_keys) > _SPARE_ROWS:
                del self._unknown_keys[next(iter(self._unknown_keys))]

    def _remove_key(self, outcome_key: str) -> None:
        for row in self._rows_of_key.pop(outcome_key):
            self._key_of_row[row] = None
            if row in self._left_batch:
                self._release(row)

    def _release(self, row: int) -> None:
        del self._left_batch[row], self._key_of_row[row]
        self._explanations.discard(row)
        self._free_rows.append(row)
