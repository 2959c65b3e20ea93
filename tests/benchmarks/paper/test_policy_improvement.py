"""A preference's rewards by one policy's values, by their mean, by the best: the rules, and the script."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
from scripted_engine import INSTRUCTIONS

from benchmarks.paper import policy_improvement

NAMES = [*INSTRUCTIONS]


def test_rules_pick_mean_and_maximum_over_the_policies():
    each = torch.tensor([[[1.0, 5.0]], [[3.0, 1.0]]])  # [M=2, N=1, K=2]
    found = {
        name: combine(each).tolist()
        for name, combine in policy_improvement.combination_rules(["a", "b"]).items()
    }
    assert found == {"a": [[1, 5]], "b": [[3, 1]], "mean": [[2, 3]], "most": [[3, 5]]}
    assert policy_improvement.preferences(("a", "b")) == [("a",), ("b",), ("a", "b")]
    assert policy_improvement.even_weights(
        SimpleNamespace(dimensions=("a", "b")), "b"
    ).tolist() == [0, 1]


def test_the_script_judges_every_preference_under_every_rule(scripted_engine, monkeypatch):
    pytest.importorskip("sklearn")
    picture, one = scripted_engine.folder / "improvement.png", str(scripted_engine.adapter)
    more = ["--of", f"plain={one}", "--of", f"warm={one}", "--tokens", "4", "--picture", picture]
    found = scripted_engine.run(monkeypatch, policy_improvement.main, *map(str, more))
    assert [r["by"] for r in found["rows"][:4]] == ["plain", "warm", "mean", "most"]
    assert [r["wish"] for r in found["rows"][::4]] == [*([name] for name in NAMES), NAMES]
    assert len(found["rows"]) == 16
    # Two policies with the same values are one.
    by = {(*r["wish"], r["by"]): r["each"] for r in found["rows"]}
    assert by["warm", "plain"] == by["warm", "most"] == by["warm", "mean"]
    assert picture.stat().st_size > 1000
    twice = scripted_engine.run(
        monkeypatch, policy_improvement.main, *map(str, more), "--by", "most", "--times", "2"
    )
    assert [r["by"] for r in twice["rows"]] == ["most"] * 4
    with pytest.raises(SystemExit, match="--by least: accepted are plain, warm, mean, most"):
        scripted_engine.run(monkeypatch, policy_improvement.main, *map(str, more), "--by", "least")


def test_other_dimensions_are_refused(scripted_engine, monkeypatch):
    pytest.importorskip("sklearn")
    other = tiny.write_adapter(
        scripted_engine.base, scripted_engine.folder / "other", fork_layer=4, std=0.3
    )
    more = ["--of", f"taught={scripted_engine.adapter}", "--of", f"plain={other}"]
    with pytest.raises(SystemExit, match="plain=.*heads only for .*warm"):
        scripted_engine.run(monkeypatch, policy_improvement.main, *more)
