"""Methods at an equal way: points between two strengths, a dash where a method does not get there."""

from __future__ import annotations

import pytest

from benchmarks.paper import equal_way
from benchmarks.paper.equal_way import (
    PLAIN,
    Point,
    comparison,
    known_records,
    lines_by_method,
    point_where,
    table,
)


def record(name, beta, way, perplexity):
    dimension = name.partition("+")[2]
    return {
        "name": name,
        "beta": beta,
        "way": {dimension: [way, way, way]} if dimension else {},
        "perplexity": perplexity,
        "repeated_more": 0.02,
        "relevance": 0.9,
    }


RECORDS = [
    record("unguided", 0.0, 0.0, 1.0),
    record("told friendly", 0.0, 1.0, 1.5),
    record("heads +friendly", 2.0, 0.8, 1.4),
    record("heads +friendly", 1.0, 0.4, 1.1),
    record("heads +funny", 1.0, 0.6, 1.3),
    record("bias +friendly", 1.0, 0.1, 1.2),
    record("bias +funny", 1.0, 0.7, 1.2),
]


def test_a_methods_points_begin_at_the_plain_answers_and_go_by_strength():
    lines = lines_by_method(RECORDS)
    assert set(lines) == {(m, d) for m in ("heads", "bias") for d in ("friendly", "funny")}
    assert [point.way for point in lines["heads", "friendly"]] == [0.0, 0.4, 0.8]


def test_between_two_strengths_everything_lies_on_a_line():
    points = lines_by_method(RECORDS)["heads", "friendly"]
    assert point_where(points, "way", 0.6) == pytest.approx(Point(0.6, 1.25, 0.02, 0.9, 1.5))
    assert point_where(points, "perplexity", 1.05) == pytest.approx((0.2, 1.05, 0.01, 0.95, 0.5))
    assert point_where(points, "way", 0.9) is None
    assert point_where([PLAIN], "way", 0.0) is None


def test_a_method_that_gets_there_with_one_dimension_alone_has_a_dash():
    rows = {row["method"]: row for row in comparison(lines_by_method(RECORDS), 0.5, 1.1)}
    assert rows["bias"]["reached"] == 1
    assert "perplexity" not in rows["bias"]
    heads = next(p for p in [rows["heads"]["at_way"]["friendly"]])
    assert heads["perplexity"] == pytest.approx(1.175)
    lines = table(list(rows.values()), 0.5, 1.1)
    assert "friendly -" in lines[-1]
    assert "not measured" in lines[-1]


def test_step_times_are_those_of_results_that_exist():
    for method in equal_way.STEP_TIMES:
        assert "batch" in equal_way.step_time_text(method)


def test_points_are_read_from_results_which_measure_no_relevance():
    def row(method, beta, way):
        names = {"method": method, "instruction": "funny", "beta": beta, "min_p": 0.03}
        return names | {"way": [way, 0, 1], "perplexity": 1 + way, "repeated_more": 0.0}

    rows = [row("told", 0.0, 1.0), row("heads only", 1.0, 0.8), row("instruction", -2.0, -0.4)]
    records = known_records([{"rows": rows}], ["funny"])
    assert [record["name"] for record in records] == ["heads, min_p 0.03 +funny"]
    (heads,) = comparison(lines_by_method(records), 0.5, 1.2)
    assert heads["perplexity"] == pytest.approx(1.5)
    assert heads["at_way"]["funny"]["relevance"] is None
    assert "| - |" in table([heads], 0.5, 1.2)[-1]
    assert known_records([{"rows": rows}], ["friendly"]) == []
