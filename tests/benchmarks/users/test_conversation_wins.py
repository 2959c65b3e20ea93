"""Whether answers get better by what conversations teach: the whole script, with scripted answers."""

from __future__ import annotations

import json

from benchmarks.users import conversation_wins

NAMES = ("warm", "dry", "calm")


def row(way, dimension, weights, read=4):
    as_read = [{name: w[name] / 2 for name in w} for w in weights]
    return {
        "way": way,
        "dimension": dimension,
        "read": read,
        "weights": weights,
        "as_read": as_read,
    }


def loop_result():
    """A told dialogue teaches 0.4 of its own dimension, the next one nothing."""
    nothing = dict.fromkeys(NAMES, 0.0)
    rows = [row("plain", name, [nothing, nothing]) for name in NAMES]
    rows += [row("told", name, [{**nothing, name: 0.4}, nothing]) for name in NAMES]
    return {"rows": [*rows, *(row("told", name, [nothing, nothing], read=8) for name in NAMES)]}


def test_a_profile_is_the_mean_as_if_one_more_conversation_had_taught_nothing():
    taught = conversation_wins.TaughtWeights(loop_result())
    assert taught.profile("warm", "in units", 1) == {"warm": 0.2, "dry": 0.0, "calm": 0.0}
    assert taught.profile("warm", "as read", 1) == {"warm": 0.1, "dry": 0.0, "calm": 0.0}
    assert taught.profile("dry", "in units", 2) == {"warm": 0.0, "dry": 0.133, "calm": 0.0}


def test_the_script_draws_every_profile_and_judges_it(scripted_engine, monkeypatch):
    loop = scripted_engine.folder / "loop.json"
    loop.write_text(json.dumps(loop_result()))
    words = ["--loop", str(loop), "--conversations", "1", "2"]
    result = scripted_engine.run(monkeypatch, conversation_wins.main, *words)
    rows = {found["way"]: found for found in result["rows"]}
    assert rows.keys() == {
        "weight 1", "asked", "as read, 1", "as read, 2", "in units, 1", "in units, 2",
    }  # fmt: skip
    assert all(found["wins"].keys() == set(NAMES) for found in rows.values())
    assert rows["weight 1"]["weights"]["calm"] == {"calm": 1.0}
