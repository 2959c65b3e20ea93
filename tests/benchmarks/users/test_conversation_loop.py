"""What the answers of a server teach it: the whole script, with an engine whose answers follow conditions."""

from __future__ import annotations

import json

import pytest

from benchmarks.users import conversation_loop


def test_dialogues_are_of_consecutive_prompts_and_whole():
    found = conversation_loop.make_dialogues(list("abcde"), list("12345"), 2)
    assert found == [[("a", "1"), ("b", "2")], [("c", "3"), ("d", "4")]]


def test_the_script_reads_plain_guided_and_told_dialogues(scripted_engine, monkeypatch):
    own = {
        "--base": scripted_engine.base,
        "--adapter": scripted_engine.adapter,
        "--out": scripted_engine.folder / "out.json",
        "--prompts": scripted_engine.folder / "p.txt",
        "--turns": 2,
        "--dialogues": 2,
    }
    words = [str(word) for pair in own.items() for word in pair]
    monkeypatch.setattr("sys.argv", ["script.py", *words, "--read", "1", "2"])
    conversation_loop.main()
    found = json.loads(own["--out"].read_text())

    (batch,) = scripted_engine.batches
    assert len(batch.prompts) == 4
    guided_and_told = [{"warm": 1.0}, {"dry": 1.0}, {"calm": 1.0}, "be warm", "be dry", "be calm"]
    asked = [c.weights or c.instruction for c in batch.conditions]
    assert asked == ["", *guided_and_told]
    rows = {(r["way"], r["dimension"], r["read"]): r for r in found["rows"]}
    assert len(rows) == 2 * 3 * 3 + 3
    guided, plain = rows["guided", "dry", 2], rows["plain", "dry", 2]
    assert found["gain"]["2"]["dry"] == pytest.approx(guided["own"] - plain["own"], abs=1e-3)
    assert guided["other_dimension"] in {"warm", "calm"}
    assert len(guided["weights"]) == 2
    assert len(found["table"]) == 2 + 2 * 3 + 1
    assert found["seconds"].keys() == {"1", "2"}
