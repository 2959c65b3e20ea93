"""Held-out accuracy: shares of pairs, and no share where there was no pair."""

from __future__ import annotations

import math

import pytest
import torch

from pad_vllm.cli.evaluate import _table
from pad_vllm.training.objective.pair_accuracy import TestedPreference, measure_pair_accuracy
from pad_vllm.training.report.held_out_accuracy import accuracy_entry

SCORES = [torch.tensor([[0.1, torch.nan], [0.0, torch.nan], [0.0, 1.0]])]
TESTED = [TestedPreference(name, w[None], 0.0) for name, w in zip("ab", torch.eye(2), strict=True)]


@pytest.fixture
def measured():
    """Values that rank one of the two pairs of a rightly and tie the other; b has no pair at all."""
    return measure_pair_accuracy(
        lambda *_: torch.tensor([[1.0, 1.0, 0.0]]), SCORES, TESTED, clear_margin=0.3
    )


def test_a_share_is_of_the_pairs_that_there_were_and_there_is_none_of_no_pairs(measured):
    assert (measured["a"].pairs, measured["a"].count) == (0.75, 2)
    assert math.isnan(measured["a"].clear)
    assert math.isnan(measured["b"].pairs)
    assert measured["b"].count == 0


def test_a_figure_without_pairs_is_left_out_and_its_cell_is_empty(measured):
    assert accuracy_entry("trained", measured["a"]) == {"trained": {"pairs": 0.75, "count": 2}}
    assert accuracy_entry("trained", measured["b"]) == {"trained": {"count": 0}}
    row = {
        "preference": "b",
        "distance": 0.0,
        "count": 0,
        **accuracy_entry("trained", measured["b"]),
    }
    cells = [next(iter(column.cells)) for column in _table([row]).columns]
    assert cells == ["b", "0°", "0", "", "", "", "", ""]
