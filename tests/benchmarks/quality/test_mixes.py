"""Several dimensions at once: which mixes there are, what their parts add up to, and the whole script."""

from __future__ import annotations

import math

import pytest

from benchmarks.common import independent_judges
from benchmarks.quality import mixes


def verdict(**wins):
    return independent_judges.Verdict(wins, 1.0, 0.0)


def test_every_two_dimensions_pull_together_and_against_each_other():
    found = list(mixes.all_mixes(("a", "b", "c"), [1.0]))
    assert found[:3] == [
        (mixes.TOGETHER, {"a": 1, "b": 1}),
        (mixes.OPPOSED, {"a": 1, "b": -1}),
        (mixes.OPPOSED, {"a": -1, "b": 1}),
    ]
    assert (mixes.ALL, {"a": 1, "b": -1, "c": 1}) in found
    alone = mixes.single_dimensions(("a", "b", "c"), [1.0])
    assert all({name: weight} in alone for _, mix in found for name, weight in mix.items())


def test_parts_add_up_in_log_odds_and_a_mix_far_from_it_is_broken():
    alone = {
        "+1 a": verdict(a=[1.0] * 6 + [0.0] * 2, b=[0.5] * 8),
        "-1 b": verdict(a=[1.0] * 6 + [0.0] * 2, b=[0.0] * 8),
    }
    found = mixes.part_row(
        mixes.OPPOSED, {"a": 1.0, "b": -1.0}, "a", verdict(a=[0.0] * 8, b=[0.0] * 8), alone
    )
    assert found["alone"] == 0.75
    assert found["added"] == pytest.approx(1 / (1 + math.exp(-2 * math.log(6.5 / 2.5))), abs=1e-3)
    assert found["broken"]
    assert found["lost"] == [1.0] * 6 + [0.0] * 2
    near = verdict(a=[1.0] * 8, b=[0.0] * 8)
    assert not mixes.part_row(mixes.OPPOSED, {"a": 1.0, "b": -1.0}, "a", near, alone)["broken"]
    won = mixes.part_row(
        mixes.OPPOSED, {"a": 1.0, "b": -1.0}, "b", verdict(a=[1.0] * 8, b=[0.0] * 8), alone
    )
    assert won["wins"][0] == 1.0


def test_a_kind_is_summed_up_over_its_parts_and_prompts():
    rows = [
        {
            "kind": "k",
            "wins": [0.5, 0, 1],
            "alone": 0.75,
            "added": 0.75,
            "broken": b,
            "lost": [0.5, 0.0],
        }
        for b in (True, False)
    ]
    (found,) = mixes.summarize(rows)
    assert (found["parts"], found["lost"][0], found["off"], found["broken"]) == (2, 0.25, 0.25, 1)


def test_the_script_draws_once_and_writes_figures_table_and_picture(scripted_engine, monkeypatch):
    pytest.importorskip("sklearn")
    picture = scripted_engine.folder / "mixes.png"
    found = scripted_engine.run(monkeypatch, mixes.main, "--picture", str(picture))
    assert [r["kind"] for r in found["kinds"]] == [mixes.TOGETHER, mixes.OPPOSED, mixes.ALL]
    # The engine says a dimension's word as often as its weight says, whatever stands beside it.
    warm = next(r for r in found["rows"] if r["mix"] == "+1 warm +1 calm" and r["part"] == "warm")
    assert warm["wins"] == [1.0, 0.61, 1.0]
    assert warm["alone"] == 1.0
    assert set(warm["lost"]) == {0.0}
    assert picture.stat().st_size > 1000
    assert found["table"][0] in "\n".join(found["table"])
    assert len(scripted_engine.batches) == 2
    again = scripted_engine.run(monkeypatch, mixes.main)
    assert len(scripted_engine.batches) == 2
    assert again["rows"] == found["rows"]


def test_dimensions_are_checked_before_anything_is_drawn(scripted_engine, monkeypatch):
    with pytest.raises(SystemExit, match="--dimensions cold: accepted are warm, dry, calm"):
        scripted_engine.run(monkeypatch, mixes.main, "--dimensions", "cold")
    assert not scripted_engine.batches
