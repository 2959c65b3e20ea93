"""What became of each guided answer: how many of its tokens went unguided, and whether it was stopped.

In: the rows of every step, and which of them stayed unguided. Out: an Outcome for each mark that the front
end gave a request (vllm_api/patches/outcome_rpc.py). Counts are kept on the device: only asking waits for it.
Steps are counted some at a time, since on a GPU each small operation costs the step that launches it. Imports
no vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from pad_vllm.guidance_outcome import Outcome, WorkerReport, unknown_outcome
from pad_vllm.serving.worker.batch_slots import GuidedRows
from pad_vllm.serving.worker.explanation_buffer import ExplanationBuffer
from pad_vllm.serving.worker.step_counters import StepCounters

_SPARE = 4096  # answers that ended, and whose outcome nobody has asked for yet
_AT_ONCE = 64  # steps that are counted together


class OutcomeTable:
    """Tickets, places in a table on the device, for the answers of one engine.

    An answer has one for each of its rows: several with `n`, and a new one after a preemption.
    """

    def __init__(
        self, device: torch.device, rows: int, tally: StepCounters, most: int = 100
    ) -> None:
        """rows: the most that a batch has; most: candidates that a row may ask for."""
        self.tally = tally
        self._counts = torch.zeros(2 * rows + _SPARE, 2, dtype=torch.int32, device=device)
        self._total = torch.zeros((), dtype=torch.int64, device=device)
        self._uncounted: list[
            tuple[Tensor, Tensor]
        ] = []  # steps: tickets, which rows stayed unguided
        self._free = list(range(len(self._counts)))
        self._marks: dict[int, str | None] = {}  # ticket -> mark, None where nobody will ask
        self._tickets: dict[str, list[int]] = {}  # the reverse
        self._explained = ExplanationBuffer(device, most)
        self._left: dict[int, None] = {}  # tickets whose row left the batch, oldest first
        self._lost: dict[str, None] = {}  # marks of answers not known any more, oldest first

    def enter(self, mark: str | None) -> int:
        """A ticket for a row of the answer with this mark; None where nobody will ask for it."""
        if not self._free:
            self.forget(next(iter(self._left)))
        self._settle()  # before the ticket is another's
        ticket = self._free.pop()
        self._counts[ticket] = 0
        mark = None if mark in self._lost else mark  # what is left of it would pass for the whole
        self._marks[ticket] = mark
        if mark is not None:
            self._tickets.setdefault(mark, []).append(ticket)
        return ticket

    def leave(self, ticket: int) -> None:
        """Its row left the batch."""
        self._left[ticket] = None
        if self._marks[ticket] is None:
            self._release(ticket)

    def count(self, tickets: Tensor, unguided: Tensor) -> None:
        """One more step: tickets [G] int64, unguided [G] bool."""
        self._uncounted.append((tickets, unguided))
        if len(self._uncounted) == _AT_ONCE:
            self._settle()

    def ever(self, tickets: Tensor) -> Tensor:
        """[G] bool, which rows ever were unguided; tickets [G]."""
        self._settle()
        return self._counts[:, 0].index_select(0, tickets) > 0

    def unguided(self) -> int:
        """Rows that stayed unguided, all steps together; waits for the device."""
        self._settle()
        return int(self._total)

    def _settle(self) -> None:
        if self._uncounted:
            tickets, unguided = map(torch.cat, zip(*self._uncounted, strict=True))
            self._uncounted.clear()
            self._counts[:, 0].index_add_(0, tickets, unguided.int())
            self._total += unguided.sum()

    def stop(self, tickets: Tensor, stopped: Tensor) -> None:
        """Which rows end in this step because they were unguided: tickets [G] int64, stopped [G] bool."""
        self._counts[:, 1].index_add_(0, tickets, stopped.int())

    def note(self, selection: GuidedRows, place: Tensor, ids: Tensor, paid: Tensor) -> None:
        """For the rows of a step that are explained: place [G] tokens so far, ids, paid [G, K]."""
        tickets = [selection.requests[row].outcome_row for row in selection.explaining]
        parts = (part.index_select(0, selection.explained) for part in (place, ids, paid))
        self._explained.add(tickets, *parts)

    def outcome(self, mark: str) -> Outcome | None:
        """Of the answer with this mark, which is forgotten; None where there never was one."""
        lost = mark in self._lost
        self._lost.pop(mark, None)
        tickets = self._tickets.get(mark)
        if tickets is None:
            return unknown_outcome() if lost else None
        self._settle()
        unguided, stopped = self._counts[tickets].sum(0).tolist()
        told: Outcome = {"unguided_tokens": unguided, "stopped": bool(stopped)}
        steps = [step for ticket in tickets for step in self._explained.steps(ticket)]
        self._unmark(mark)
        return {**told, "steps": steps} if steps else told

    def forget(self, ticket: int) -> None:
        """The outcome of this row's answer is not known any more, whatever rows of it are still to come."""
        if (mark := self._marks[ticket]) is not None:
            self._unmark(mark)
            self._lost[mark] = None
            if len(self._lost) > _SPARE:
                del self._lost[next(iter(self._lost))]

    def _unmark(self, mark: str) -> None:
        for ticket in self._tickets.pop(mark):
            self._marks[ticket] = None
            if ticket in self._left:
                self._release(ticket)

    def _release(self, ticket: int) -> None:
        del self._left[ticket], self._marks[ticket]
        self._explained.drop(ticket)
        self._free.append(ticket)


_running: WeakValueDictionary[str, OutcomeTable] = WeakValueDictionary()


def start(instance_id: str, answers: OutcomeTable) -> None:
    """Make the answers of one vLLM instance (`VllmConfig.instance_id`) known in this process."""
    _running[instance_id] = answers


def report_outcomes(instance_id: str, marks: Sequence[str]) -> WorkerReport:
    """What became of the answers with these marks, in their order, and what guidance did since."""
    answers = _running.get(instance_id)
    if answers is None:
        return [None for _ in marks], None
    return [answers.outcome(mark) for mark in marks], answers.tally.take()
