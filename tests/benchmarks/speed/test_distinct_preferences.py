"""Distinct preferences are distinct, and ratios are taken within a round."""

from __future__ import annotations

from argparse import Namespace

from benchmarks.speed import distinct_preferences


def test_no_two_preferences_are_alike_and_rounds_bring_new_ones():
    some = [
        p
        for turn in (0, 1)
        for p in distinct_preferences.random_preferences(("a", "b"), 5000, turn)
    ]
    assert len({tuple(p["pad_weights"]) for p in some}) == 10_000


def test_a_ratio_is_the_median_over_the_rounds():
    rounds = [{"one": 1.0, "all": 1.5}, {"one": 2.0, "all": 2.0}, {"one": 1.0, "all": 1.1}]
    assert distinct_preferences.ratio(rounds, "all", "one") == {
        "ratio": 1.1,
        "least": 1.0,
        "most": 1.5,
    }


def test_every_comparison_has_a_row():
    one = {"plain": 1.0, "one": 1.1, "hundred": 1.2, "all": 1.3}
    long = {"plain, cold": 2.0, "PAD, cold": 2.2, "plain, warm": 1.0, "PAD, warm": 1.1}
    lines = distinct_preferences.table(
        distinct_preferences.rows([one], [long], Namespace(requests=500, rounds=20))
    )
    assert len(lines) == 2 + 5
    assert "10,000 preferences | 1.30 | 1.182x (1.18 to 1.18) | one preference" in lines[4]
