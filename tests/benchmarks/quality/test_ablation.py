"""Variants of an adapter, their weights, and the whole script."""

from __future__ import annotations

import pytest
import torch

from benchmarks.common import independent_judges
from benchmarks.quality import ablation
from pad_vllm.adapter.adapter_folder import load_adapter


def test_variants_are_the_adapters_own_parts_and_random_ones(scripted_engine):
    trained = load_adapter(scripted_engine.adapter)
    made = ablation.make_variants(trained, seed=0)
    assert made["state"].config.dimensions == ("state_warm", "state_dry", "state_calm")
    assert torch.equal(made["state"].head_B, trained.head_B)
    assert not made["state"].head_C.any()
    assert torch.equal(made["constants"].head_C, trained.head_C)
    assert not made["constants"].head_B.any()
    assert not torch.equal(made["random"].head_A, trained.head_A)


def test_a_stand_in_has_the_spread_of_the_dimension():
    known = {"a": 2.0, "b": 1.0, "random_a": 8.0, "random_b": 4.0, "state_a": 0.0, "state_b": 1.0}
    found = ablation.variant_weights(["a", "b"], known)
    assert found["random", "a"] == {"random_a": 0.25}
    assert found["shuffled", "a"] == {"b": 2.0}
    assert found["as trained", "b"] == {"b": 1.0}
    assert ("state", "a") not in found
    assert ("constants", "a") not in found


def test_strategies_share_one_and_every_dimension_is_the_strongest_once():
    found = ablation.strategy_weights(("a", "b", "c"), 2)
    assert len(found) == 9
    assert all(sum(w.values()) == pytest.approx(1) for w in found.values())
    assert found["normalised", ("c", "a")] == {"c": pytest.approx(2 / 3), "a": pytest.approx(1 / 3)}
    one = independent_judges.Verdict({"a": [1.0, 0.0], "b": [0.0, 0.0]}, 1.0, 0.0)
    row = ablation.strategy_row("uniform", 2, {("a", "b"): one})
    assert row["ranks"] == [0.5, 0.0]
    assert row["wins"][0] == pytest.approx(0.333, abs=1e-3)


def test_the_script_judges_every_variant_and_strategy(scripted_engine, monkeypatch):
    pytest.importorskip("sklearn")
    picture = scripted_engine.folder / "ablation.png"
    found = scripted_engine.run(monkeypatch, ablation.main, "--picture", str(picture))
    rows = {r["variant"]: r for r in found["rows"]}
    assert set(rows) == {"no reward", "as trained", "random", "shuffled", "constants", "state"}
    assert rows["no reward"]["wins"] == [0.5, 0.276, 0.724]
    assert rows["as trained"]["wins"] == [1.0, 0.61, 1.0]
    assert rows["shuffled"]["wins"][0] < 1  # the engine knows the dimensions by their names
    assert [r["variant"] for r in found["strategies"]][:3] == [
        "uniform of 2",
        "normalised of 2",
        "maximum of 2",
    ]
    assert found["spread"]["random_warm"] > 0
    assert picture.stat().st_size > 1000
    batches = len(scripted_engine.batches)
    assert scripted_engine.run(monkeypatch, ablation.main)["rows"] == found["rows"]
    assert len(scripted_engine.batches) == batches
