"""Wins are a mean over judges that trained nothing, beside step times of the same fork."""

from __future__ import annotations

import pytest

from benchmarks.quality import wins_vs_step_time


def record(name, beta, wins, perplexity):
    judged = {judge: [share, 0.0, 1.0] for judge, share in wins.items()}
    return {"name": name, "beta": beta, "wins": {"simple": judged}} | {
        "perplexity": perplexity,
        "repeated_more": 0.01,
    }


RESULT = {
    "temperature": 0.7,
    "records": [
        record(
            "PAD +simple", 0.8, {"simple": 1.0, "flesch": 0.9, "teacher": 1.0, "meaning": 0.7}, 1.1
        ),
        record("trunk +simple", 2.0, {"simple": 1.0, "flesch": 0.8, "meaning": 0.9}, 1.3),
        record("PAD -simple", 0.8, {"flesch": 0.0}, 2.0),
    ],
}
TIMES = [
    {"fork_layer": 30, "batch": 16, "ratio": 1.04},
    {"fork_layer": 22, "batch": 16, "ratio": 1.2},
]


def test_a_scorer_that_trained_a_dimension_does_not_judge_it():
    found = wins_vs_step_time.mean_points(RESULT, 0.7, {"simple": "simple"})
    assert found["PAD"][0].wins == pytest.approx(0.8)
    assert found["trunk"][0] == pytest.approx((2.0, 0.85, 1.3, 0.01))


def test_a_row_has_the_step_time_of_its_own_fork():
    aligned = wins_vs_step_time.mean_points(RESULT, 0.7, {"simple": "simple"})
    found = wins_vs_step_time.result_rows(aligned, {"PAD": 30, "trunk": 22}, TIMES, 30)
    assert [(r["row"], r["forked_layers"], r["step_16"]) for r in found] == [
        ("PAD", 0, 1.04),
        ("trunk", 8, 1.2),
    ]
    assert (
        wins_vs_step_time.table(found, [16])[2] == "| PAD | 0 | 0.8 | 80% | 1.10x | +1.0% | 1.04x |"
    )


def test_a_row_that_was_not_measured_is_named():
    aligned = wins_vs_step_time.mean_points(RESULT, 0.7, {})
    with pytest.raises(ValueError, match="--row tree: the result knows PAD, trunk"):
        wins_vs_step_time.result_rows(aligned, {"tree": 1}, TIMES, 30)


def test_a_picture_is_drawn(tmp_path):
    aligned = wins_vs_step_time.mean_points(RESULT, 0.7, {})
    wins_vs_step_time.draw(
        wins_vs_step_time.result_rows(aligned, {"PAD": 30}, TIMES, 30), 16, tmp_path / "a.png"
    )
    assert (tmp_path / "a.png").stat().st_size > 1000
