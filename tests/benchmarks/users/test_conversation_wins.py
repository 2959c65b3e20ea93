"""Whether answers get better by what conversations teach: the whole script, with scripted answers."""

from __future__ import annotations

import json

import pytest

from benchmarks.users import conversation_wins

NAMES = ("warm", "dry", "calm")


def row(way, dimension, weights, read=4):
    own = sum(w[dimension] for w in weights) / len(weights)
    return {"way": way, "dimension": dimension, "read": read, "own": own, "weights": weights}


def loop_result():
    """Plain dialogues teach 0.1 of `dry`; told ones 0.2 of their own more; a sentence 0.4."""
    plain = {"warm": 0.0, "dry": 0.1, "calm": 0.0}
    told = {name: {**plain, name: plain[name] + 0.2} for name in NAMES}
    sentence = {name: {other: 0.4 * (other == name) for other in NAMES} for name in NAMES}
    rows = [row("plain", name, [plain, plain]) for name in NAMES]
    rows += [row("told", name, [told[name], plain]) for name in NAMES]
    rows += [row("told", name, [plain, plain], read=8) for name in NAMES]
    return {"rows": [*rows, *(row("sentence", name, [sentence[name]], 24) for name in NAMES)]}


def test_a_profile_is_the_mean_as_if_one_more_conversation_had_taught_nothing():
    taught = conversation_wins.TaughtWeights(loop_result())
    assert taught.profile("warm", "as read", 1) == {"warm": 0.1, "dry": 0.05, "calm": 0.0}
    assert taught.profile("warm", "as read", 2) == {"warm": 0.067, "dry": 0.067, "calm": 0.0}


def test_units_are_what_a_sentence_teaches_and_begin_at_plain_dialogues():
    taught = conversation_wins.TaughtWeights(loop_result())
    assert taught.profile("warm", "in units", 1) == {"warm": 0.25, "dry": 0.0, "calm": 0.0}
    assert taught.profile("dry", "in units", 2) == pytest.approx(
        {"warm": 0.0, "dry": 0.167, "calm": 0.0}
    )


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
