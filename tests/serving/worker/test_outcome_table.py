"""What is told of answers: their counts, whoever asks and whenever, in a table that does not grow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.serving.worker import outcome_table
from pad_vllm.serving.worker.step_counters import StepCounters

CPU = torch.device("cpu")
UNKNOWN = {"unguided_tokens": None, "stopped": False}


@pytest.fixture
def table(monkeypatch):
    """Room for three rows, and for one answer that nobody asked about."""
    monkeypatch.setattr(outcome_table, "_SPARE", 1)
    return outcome_table.OutcomeTable(CPU, 2, StepCounters(CPU, FailureLog(print)))


def count(table, *tickets, unguided=True):
    where = torch.tensor(tickets)
    table.count(where, torch.full_like(where, unguided, dtype=torch.bool))
    return table.ever(where).tolist()


def test_all_rows_of_an_answer_are_added_up(table):
    tickets = [table.enter("a"), table.enter("a"), table.enter("b")]
    assert count(table, *tickets) == [True] * 3
    assert count(table, tickets[0], unguided=False) == [True]
    assert table.outcome("a") == {"unguided_tokens": 2, "stopped": False}
    assert table.outcome("b") == {"unguided_tokens": 1, "stopped": False}


def test_an_outcome_is_told_once(table):
    table.enter("a")
    assert table.outcome("a")["unguided_tokens"] == 0
    assert table.outcome("a") is None


def test_whether_an_answer_was_stopped_is_told(table):
    ticket = torch.tensor([table.enter("a")])
    table.stop(ticket, torch.tensor([True]))
    table.stop(ticket, torch.tensor([True]))  # a step that ran ahead
    assert table.outcome("a")["stopped"] is True


@pytest.mark.parametrize("asked", ["before it leaves", "after", "never", "cannot be"])
def test_tickets_come_back_and_start_from_zero(table, asked):
    for number in range(40):
        mark = None if asked == "cannot be" else f"answer {number}"
        ticket = table.enter(mark)
        assert count(table, ticket, unguided=False) == [False]
        count(table, ticket)
        if asked == "before it leaves":
            assert table.outcome(mark)["unguided_tokens"] == 1
        table.leave(ticket)
        if asked == "after":
            assert table.outcome(mark)["unguided_tokens"] == 1
    assert table.outcome("answer 0") is None


def test_a_row_in_the_batch_is_never_pushed_out(table):
    stays = table.enter("stays")
    for number in range(40):
        table.leave(table.enter(f"gone {number}"))
    count(table, stays)
    assert table.outcome("stays")["unguided_tokens"] == 1


def test_an_answer_whose_rows_were_lost_is_unknown(table):
    ticket = table.enter("a")
    table.forget(ticket)
    table.leave(ticket)
    assert table.outcome("a") == UNKNOWN


def test_a_lost_answer_stays_unknown_whatever_rows_of_it_come_later(table):
    table.forget(table.enter("a"))
    for _ in range(40):  # each preemption brings another
        table.leave(table.enter("a"))
    assert table.outcome("a") == UNKNOWN


def test_what_was_lost_is_remembered_up_to_a_bound(table):
    for number in range(40):
        ticket = table.enter(f"answer {number}")
        table.forget(ticket)
        table.leave(ticket)
    assert len(table._lost) == 1


def test_an_instance_without_a_processor_knows_nothing():
    assert outcome_table.report_outcomes("nobody", ["a", "b"]) == ([None] * 2, None)


def explaining(*tickets, rows):
    """A selection of these requests' tickets, of which these rows are explained."""
    requests = [SimpleNamespace(ticket=ticket) for ticket in tickets]
    return SimpleNamespace(explaining=rows, explained=torch.tensor(rows), requests=requests)


def note(table, ticket, place, *ids):
    table.note(
        explaining(ticket, rows=(0,)),
        torch.tensor([place]),
        torch.tensor([ids]),
        torch.tensor([ids]).float(),
    )


def test_the_steps_of_an_explained_answer_are_told_once_in_their_order(table):
    one, other = table.enter("a"), table.enter("b")
    for place, width in ((0, 3), (1, 2)):
        ids = torch.arange(2 * width).view(2, width)
        where = torch.tensor([9, place])
        table.note(explaining(other, one, rows=(1,)), where, ids, ids.float())
    later = table.enter("a")  # after a preemption
    note(table, later, 2, 7)
    assert table.outcome("a")["steps"] == [
        (0, [3, 4, 5], [3.0, 4.0, 5.0]),
        (1, [2, 3], [2.0, 3.0]),
        (2, [7], [7.0]),
    ]
    assert "steps" not in table.outcome("b")


@pytest.mark.parametrize("how", ["asked while it runs on", "forgotten", "lost before", "unmarked"])
def test_nobody_is_told_the_steps_of_whoever_had_the_ticket_before(table, how):
    if how == "lost before":
        ticket = table.enter("a")
        table.forget(ticket)
        table.leave(ticket)
    ticket = table.enter(None if how == "unmarked" else "a")
    note(table, ticket, 0, 1, 2)
    if how == "asked while it runs on":
        assert len(table.outcome("a")["steps"]) == 1
    if how == "forgotten":
        table.forget(ticket)
    note(table, ticket, 1, 3, 4)
    table.leave(ticket)
    after = table.enter("b")
    assert after == ticket
    assert "steps" not in table.outcome("b")
    assert not table._explained._owners


def test_steps_make_room_for_newer_ones_in_a_table_that_does_not_grow(monkeypatch):
    from pad_vllm.serving.worker import explanation_buffer

    monkeypatch.setattr(explanation_buffer, "_BYTES", 8 * 3 * 4)
    kept = explanation_buffer.ExplanationBuffer(CPU, 2)
    for place in range(6):
        one, other = torch.tensor([place, place]), torch.tensor([[place, 1], [place, 2]])
        kept.add([7, 8], one, other, other.float())
    assert kept.steps(7) == [(4, [4, 1], [4.0, 1.0]), (5, [5, 1], [5.0, 1.0])]
    kept.drop(7)
    assert kept.steps(7) == []
    assert [place for place, *_ in kept.steps(8)] == [4, 5]
