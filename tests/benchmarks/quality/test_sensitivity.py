"""One setting at a time: the engine's batches, and the result's rows."""

from __future__ import annotations

import pytest

from benchmarks.common import independent_judges
from benchmarks.quality import sensitivity


def test_the_default_stands_among_the_values_of_every_setting():
    def verdicts(wins):
        return [independent_judges.Verdict({"a": wins, "b": wins}, 1.5, 0.1)] * 2

    found = {
        ("default", 0.0): verdicts([1.0, 0.0]),
        ("beta", 2.0): verdicts([1.0, 1.0]),
        ("top k", 5): verdicts([0.0, 0.0]),
    }
    made = sensitivity.result_rows(found, ["a", "b"], {"beta": 0.8, "top k": 20})
    assert [(r["setting"], r["value"], r["wins"][0]) for r in made] == [
        ("beta", 0.8, 0.5),
        ("beta", 2.0, 1.0),
        ("top k", 5, 0.0),
        ("top k", 20, 0.5),
    ]
    assert made[0]["default"]
    assert made[0]["perplexity"] == 1.5


def test_the_script_changes_one_setting_at_a_time(scripted_engine, monkeypatch):
    pytest.importorskip("sklearn")
    picture = scripted_engine.folder / "sensitivity.png"
    found = scripted_engine.run(monkeypatch, sensitivity.main, "--picture", str(picture))
    assert {r["setting"] for r in found["rows"]} == {"beta", "top k", "temperature", "min p"}
    assert picture.stat().st_size > 1000
    _, requests, *decodings = scripted_engine.batches
    seen = {
        (c.beta, c.request_arguments.get("pad_min_p")) for c in requests.conditions if c.weights
    }
    assert seen == {(2.0, None), (0.4, None), (1.6, None), (2.0, 0.4)}  # 0 is the adapter's min_p
    ways = [(d.temperature, d.top_k) for batch in decodings for d in batch.decodings]
    assert ways == [(0.0, 10), (1.0, 10), (0.7, 5), (0.7, 50)]
    for batch in decodings:
        (k,) = {c.request_arguments["pad_top_k"] for c in batch.conditions if c.weights}
        assert {d.top_k for d in batch.decodings} == {k}
