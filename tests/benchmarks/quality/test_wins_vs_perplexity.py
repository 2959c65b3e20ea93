"""Methods at equal wins: the lines read from results, and points between two strengths."""

from __future__ import annotations

import pytest

from benchmarks.quality import wins_vs_perplexity


def record(name, beta, wins, perplexity):
    weights = {"warm": 1.0} if beta else {}
    judged = {"warm": {"meaning": [wins, wins - 0.1, wins + 0.1]}}
    more = {"perplexity": perplexity, "repeated_more": perplexity - 1, "weights": weights}
    return {"name": name, "beta": beta, "wins": judged, **more}


RECORDS = [
    {**record("unguided", 0, 0.5, 1.0), "wins": {}},
    record("told warm", 0, 0.9, 1.3),
    record("PAD +warm", 0.8, 0.9, 1.2),
    record("PAD +warm", 0.4, 0.7, 1.1),
    record("PAD -warm", 0.4, 0.2, 1.1),
    record("told and PAD +warm", 0.4, 0.95, 1.4),
    record("PAD +warm+brief", 0.4, 0.6, 1.1),
]
PEER = [record("activation +warm", 0.1, 0.6, 1.5)]
RESULTS = [
    {
        "decodings": [
            {"temperature": 0.7, "records": RECORDS},
            {"temperature": 0.0, "records": PEER},
        ]
    },
    {"temperature": 0.7, "records": PEER},
]


def test_a_dimension_alone_is_a_line_and_prompting_a_point():
    (lines,) = wins_vs_perplexity.read_lines(RESULTS, 0.7).values()
    assert [p.strength for p in lines["PAD"]] == [0.4, 0.8]
    assert [p.wins for p in lines[wins_vs_perplexity.PROMPTING]] == [0.9]
    assert len(lines["activation"]) == 1
    assert set(lines) == {"PAD", "activation", wins_vs_perplexity.PROMPTING}


def test_methods_are_compared_where_they_win_equally_often():
    rows = {
        row["method"]: row
        for row in wins_vs_perplexity.compare_at_wins(
            wins_vs_perplexity.read_lines(RESULTS, 0.7), 0.8
        )
    }
    assert rows["PAD"]["at"] == pytest.approx(
        {"strength": 0.6, "wins": 0.8, "perplexity": 1.15, "repeated": 0.15}
    )
    assert rows["activation"]["at"] is None
    assert rows["activation"]["most"] == 0.6
    said = "\n".join(wins_vs_perplexity.table(list(rows.values()), 0.8))
    assert "| warm | meaning | PAD | 0.60 | 1.15x | +15.0% | 90% |" in said


def test_the_picture_has_a_panel_a_judge(tmp_path):
    wins_vs_perplexity.draw(wins_vs_perplexity.read_lines(RESULTS, 0.7), tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").stat().st_size > 1000
