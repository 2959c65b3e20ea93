"""Outcomes of answers: right whenever they are asked for, in a table that does not grow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pad_vllm.serving.worker import instance, outcome_table

CPU = torch.device("cpu")
UNKNOWN = {"guided_tokens": None, "unguided_tokens": None, "stopped": False}


@pytest.fixture
def table(monkeypatch):
    """Room for two rows in the batch, and for one answer that was not asked about."""
    monkeypatch.setattr(outcome_table, "_SPARE_ROWS", 1)
    return outcome_table.OutcomeTable(CPU, 2)


def count(table, *rows, unguided=True):
    where = torch.tensor(rows)
    table.count_step(where, torch.full_like(where, unguided, dtype=torch.bool))
    return table.had_unguided_step(where).tolist()


def pop(table, key):
    (outcome,) = table.pop_outcomes([key])
    return outcome


def test_all_rows_of_an_answer_are_added_up(table):
    rows = [table.assign_row("a"), table.assign_row("a"), table.assign_row("b")]
    assert count(table, *rows) == [True] * 3
    assert count(table, rows[0], unguided=False) == [True]
    assert pop(table, "a") == {"guided_tokens": 1, "unguided_tokens": 2, "stopped": False}
    assert pop(table, "b") == {"guided_tokens": 0, "unguided_tokens": 1, "stopped": False}


def test_rows_of_reasoning_are_counted_apart(table):
    rows = torch.tensor([table.assign_row("a"), table.assign_row("b")])
    table.count_step(rows, torch.tensor([False, True]), torch.tensor([True, False]))
    table.count_step(rows, torch.tensor([False, False]), torch.tensor([False, False]))
    table.count_step(rows, torch.tensor([True, False]))
    assert pop(table, "a") == {
        "guided_tokens": 1,
        "unguided_tokens": 1,
        "stopped": False,
        "reasoning_rows": 1,
    }
    assert pop(table, "b") == {"guided_tokens": 2, "unguided_tokens": 1, "stopped": False}
    assert table.total_unguided_rows() == 2


def test_several_are_returned_in_the_order_in_which_they_are_asked_for(table):
    for key in ("a", "b", "b"):
        count(table, table.assign_row(key))
    table.set_unknown(table.assign_row("lost"))
    counts = table.pop_outcomes(["b", "nobody", "lost", "a"])
    assert [one and one["unguided_tokens"] for one in counts] == [2, None, None, 1]
    assert counts[1] is None
    assert counts[2] == UNKNOWN


def test_steps_run_in_inference_mode_and_are_asked_about_outside_of_it(table):
    with torch.inference_mode():
        row = table.assign_row("a")
        table.count_step(torch.tensor([row]), torch.tensor([True]))
        table.count_stopped(torch.tensor([row]), torch.tensor([True]))
    assert pop(table, "a") == {"guided_tokens": 0, "unguided_tokens": 1, "stopped": True}


def test_an_outcome_is_returned_once(table):
    table.assign_row("a")
    assert pop(table, "a")["unguided_tokens"] == 0
    assert pop(table, "a") is None


def test_an_outcome_says_whether_the_answer_was_stopped(table):
    row = torch.tensor([table.assign_row("a")])
    table.count_stopped(row, torch.tensor([True]))
    table.count_stopped(row, torch.tensor([True]))  # a step that ran ahead
    assert pop(table, "a")["stopped"] is True


@pytest.mark.parametrize("asked", ["before it leaves", "after", "never", "cannot be"])
def test_rows_are_reused_and_start_from_zero(table, asked):
    for number in range(40):
        key = None if asked == "cannot be" else f"answer {number}"
        row = table.assign_row(key)
        assert count(table, row, unguided=False) == [False]
        count(table, row)
        if asked == "before it leaves":
            assert pop(table, key)["unguided_tokens"] == 1
        table.on_left_batch(row)
        if asked == "after":
            assert pop(table, key)["unguided_tokens"] == 1
    assert pop(table, "answer 0") is None


def test_a_row_in_the_batch_is_never_pushed_out(table):
    stays = table.assign_row("stays")
    for number in range(40):
        table.on_left_batch(table.assign_row(f"gone {number}"))
    count(table, stays)
    assert pop(table, "stays")["unguided_tokens"] == 1


def test_an_answer_set_to_unknown_is_unknown(table):
    row = table.assign_row("a")
    table.set_unknown(row)
    table.on_left_batch(row)
    assert pop(table, "a") == UNKNOWN


def test_an_unknown_answer_stays_unknown_when_more_of_its_rows_follow(table):
    table.set_unknown(table.assign_row("a"))
    for _ in range(40):  # each preemption brings another
        table.on_left_batch(table.assign_row("a"))
    assert pop(table, "a") == UNKNOWN


def test_the_number_of_unknown_answers_is_bounded(table):
    for number in range(40):
        row = table.assign_row(f"answer {number}")
        table.set_unknown(row)
        table.on_left_batch(row)
    assert len(table._unknown_keys) == 1


def test_an_instance_without_a_processor_reports_nothing():
    assert instance.report_outcomes("nobody", ["a", "b"]) == ([None] * 2, None)


def explaining(*outcome_rows, indices):
    """Guided rows with these outcome rows, of which those at these indices are explained."""
    return SimpleNamespace(
        explained_indices=indices,
        explained_indices_on_device=torch.tensor(indices),
        requests=[SimpleNamespace(outcome_row=row) for row in outcome_rows],
    )


def add_explanation(table, row, num_tokens, *ids):
    table.add_explanations(
        explaining(row, indices=(0,)),
        torch.tensor([num_tokens]),
        torch.tensor([ids]),
        torch.tensor([ids]).float(),
    )


def test_the_steps_of_an_explained_answer_are_returned_once_and_in_order(table):
    one, other = table.assign_row("a"), table.assign_row("b")
    for place, width in ((0, 3), (1, 2)):
        ids = torch.arange(2 * width).view(2, width)
        where = torch.tensor([9, place])
        table.add_explanations(explaining(other, one, indices=(1,)), where, ids, ids.float())
    later = table.assign_row("a")  # after a preemption
    add_explanation(table, later, 2, 7)
    assert pop(table, "a")["steps"] == [
        (0, [3, 4, 5], [3.0, 4.0, 5.0]),
        (1, [2, 3], [2.0, 3.0]),
        (2, [7], [7.0]),
    ]
    assert "steps" not in pop(table, "b")


@pytest.mark.parametrize(
    "how", ["asked while it runs on", "forgotten", "lost before", "without key"]
)
def test_no_answer_gets_the_steps_of_the_answer_that_had_its_row_before(table, how):
    if how == "lost before":
        row = table.assign_row("a")
        table.set_unknown(row)
        table.on_left_batch(row)
    row = table.assign_row(None if how == "without key" else "a")
    add_explanation(table, row, 0, 1, 2)
    if how == "asked while it runs on":
        assert len(pop(table, "a")["steps"]) == 1
    if how == "forgotten":
        table.set_unknown(row)
    add_explanation(table, row, 1, 3, 4)
    table.on_left_batch(row)
    after = table.assign_row("b")
    assert after == row
    assert "steps" not in pop(table, "b")
    assert not table._explanations._owners


def test_new_steps_overwrite_the_oldest_in_a_buffer_that_does_not_grow(monkeypatch):
    from pad_vllm.serving.worker import explanation_buffer

    monkeypatch.setattr(explanation_buffer, "_BUFFER_BYTES", 8 * 3 * 4)
    kept = explanation_buffer.ExplanationBuffer(CPU, 2)
    for place in range(6):
        one, other = torch.tensor([place, place]), torch.tensor([[place, 1], [place, 2]])
        kept.add([7, 8], one, other, other.float())
    assert kept.steps(7) == [(4, [4, 1], [4.0, 1.0]), (5, [5, 1], [5.0, 1.0])]
    kept.discard(7)
    assert kept.steps(7) == []
    assert [place for place, *_ in kept.steps(8)] == [4, 5]
