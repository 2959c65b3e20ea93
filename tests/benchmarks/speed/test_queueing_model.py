"""The queueing model: cases with a known answer, and the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.speed import queueing_model

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
STEPS = {1: 0.01, 4: 0.02}


def test_one_user_never_waits():
    tokens, seconds = queueing_model.throughput_and_wait(
        STEPS, queueing_model.Load(60.0, 100, 4), 1
    )
    assert seconds == pytest.approx(1.0)
    assert tokens == pytest.approx(100 / 61)


def test_many_users_get_what_a_full_replica_gives_and_wait_their_turn():
    load = queueing_model.Load(60.0, 100, 4)
    tokens, seconds = queueing_model.throughput_and_wait(STEPS, load, 10_000)
    assert tokens == pytest.approx(4 / 0.02)
    assert seconds == pytest.approx(10_000 / 2 - 60)  # Little's law: 2 answers a second


def test_two_users_of_a_replica_that_runs_one_are_the_textbooks_machine_repair():
    load = queueing_model.Load(10.0, 100, 1)
    tokens, _ = queueing_model.throughput_and_wait({1: 0.1}, load, 2)
    # Asked at 1/10 a second by each, answered at 1/10: p = 1, 2, 2 fifths.
    assert tokens == pytest.approx(100 * 0.1 * 4 / 5)


def test_a_batch_left_out_is_predicted_from_its_neighbours(tmp_path):
    records = [{"batch": b, "plain_ms": ms} for b, ms in ((1, 1.0), (2, 4.0), (3, 3.0))]
    (tmp_path / "speed.json").write_text(json.dumps({"records": records}))
    assert queueing_model.model_errors(tmp_path / "speed.json") == {"plain, speed": {2: -0.5}}


def test_the_script_reads_the_results_that_exist(tmp_path, monkeypatch):
    files = [str(RESULTS / "speed.json"), str(RESULTS / "cost.json")]
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    more = ["--out", str(out), "--picture", str(picture), "--preferences", "10000"]
    monkeypatch.setattr("sys.argv", ["queueing_model.py", *files, *more])
    queueing_model.main()
    found = json.loads(out.read_text())
    names = {"plain, speed", "shared, speed", "plain, cost", "shared, cost", "resident, cost"}
    assert set(found["points"]) == names
    for some in found["points"].values():
        assert some[-1]["users"] == 10_000
        assert some == sorted(some, key=lambda r: r["tokens_s"])
    assert abs(found["off"]["cost.json"]["resident's answers"]) < 0.5
    assert picture.stat().st_size > 1000
    monkeypatch.setattr(
        "sys.argv", ["queueing_model.py", *files, "--rows", "64", "--out", str(out)]
    )
    with pytest.raises(SystemExit, match="at most 32"):
        queueing_model.main()
