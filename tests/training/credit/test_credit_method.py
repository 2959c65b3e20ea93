"""Method scores on a tiny model: from scored answers to an adapter that says what it learned."""

from __future__ import annotations

import dataclasses
import json

import planted_preferences as planted
import pytest
import torch

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.backbone.weight_fingerprint import fingerprint
from pad_vllm.training.credit.credit_method import CreditMethod
from pad_vllm.training.pairs_method import PairsMethod
from pad_vllm.training.report.evaluate_adapter import evaluate_held_out
from pad_vllm.training.settings import Recipe
from pad_vllm.training.training_methods import METHODS
from pad_vllm.training.training_run import TrainingRun

pytestmark = pytest.mark.usefixtures("one_thread")


def settings(root, out="out", **changes):
    usual = {"fork_layer": None, "method": "scores", "head_rank": 16}
    return planted.settings(root, out, **{**usual, **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("credit")


@pytest.fixture(scope="module")
def adapter(root):
    return TrainingRun(settings(root), root / "cache", "pad-vllm train ...").train()


def test_the_method_of_the_settings_decides_what_trains(root):
    assert METHODS[settings(root).method] is CreditMethod
    assert METHODS[planted.settings(root).method] is PairsMethod


def test_heads_only_and_constants_rank_held_out_pairs(adapter):
    config = adapter.config
    assert config.heads_only
    assert config.format_version == 2
    assert adapter.head_C is not None
    assert {row["dimension"] for row in config.training["credited"]} == set(planted.DIMENSIONS)
    pairs = {row["preference"]: row["trained"]["pairs"] for row in config.training["held_out"]}
    assert pairs["positive"] > 0.8
    assert "prompted" not in config.training["held_out"][0]


def test_the_folder_has_a_card_and_no_curves(root, adapter):
    out = root / "out"
    loaded = load_adapter(out)
    assert torch.equal(loaded.head_B, adapter.head_B)
    assert "## Trained from scores" in (out / "README.md").read_text()
    assert not (out / "curves.png").exists()
    assert not (out / "history.json").exists()


def test_beside_it_stands_the_control_that_needs_no_state(root, adapter):
    bias = load_adapter(root / "out.run" / "bias")
    assert not bias.head_B.any()
    assert bias.head_C.any(-1).all()
    assert bias.config.dimensions == adapter.config.dimensions


def test_the_same_run_again_is_the_same_adapter(root, adapter):
    again = TrainingRun(settings(root, "again"), root / "other_cache", "pad-vllm train ...").train()
    assert torch.equal(again.head_B, adapter.head_B)
    assert torch.equal(again.head_C, adapter.head_C)


def test_without_a_cache_it_learns_the_same(root, adapter):
    fresh = settings(root, "uncached", cached=False)
    made = TrainingRun(fresh, root / "none", "pad-vllm train ...").train()
    assert torch.allclose(made.head_C, adapter.head_C, atol=1e-3, rtol=1e-2)


def test_its_pairs_are_ranked_again_from_the_folder(root, adapter):
    rows = evaluate_held_out(root / "out", str(root / "base"), None, root / "cache", (), 8)
    expected = adapter.config.training["held_out"]
    for row, before in zip(rows, expected, strict=True):
        assert row["trained"] == before["trained"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fork_layer": 2}, "--fork-layer 2: --teacher scores trains heads only"),
        ({"text_preferences": 1}, "--text-preferences 1: --teacher scores"),
    ],
)
def test_what_one_step_cannot_learn_is_refused(root, changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingRun(settings(root, "refused", **changes), root / "cache", "pad-vllm train ...")
    assert not (root / "refused.run" / "settings.json").exists()


def drawn(root, name, **drawn_by):
    """Settings of a run over the same data, whose lines say how they were drawn."""
    fields = {"base": "a-model", "temperature": 0.6, "top_k": 20, "max_tokens": 64, "seed": 0}
    file = root / f"{name}.jsonl"
    with file.open("w") as out:
        for line in (root / "data.jsonl").read_text().splitlines():
            out.write(json.dumps({**json.loads(line), "drawn_by": {**fields, **drawn_by}}) + "\n")
    return dataclasses.replace(settings(root, name), data=(f"jsonl={file}",))


def test_the_temperature_and_the_limit_are_the_datas_and_stand_on_the_card(root, adapter):
    own = drawn(root, "own", fingerprint=fingerprint(root / "base"))
    training = TrainingRun(own, root / "cache", "pad-vllm train ...").train().config.training
    assert training["recipe"]["temperature"] == 0.6
    assert adapter.config.training["recipe"]["temperature"] == 0.8  # nothing said which
    assert training["settings"]["max_response"] == training["data"]["response_limit"]["longest"]
    assert training["made_from"]["base"] == fingerprint(root / "base")
    assert training["made_from"]["data"][own.data[0]].keys() == {str(root / "own.jsonl")}


def test_answers_that_the_base_did_not_draw_are_refused_before_anything_is_trained(root, adapter):
    foreign = drawn(root, "foreign", fingerprint="sha256:" + "0" * 64)
    with pytest.raises(
        ValueError, match="drawn by another model than the base .a-model, sha256:000"
    ):
        TrainingRun(foreign, root / "cache", "pad-vllm train ...")
    assert not (root / "foreign.run" / "settings.json").exists()


def test_a_trace_is_between_nothing_and_all():
    with pytest.raises(ValueError, match="trace"):
        Recipe(trace=1.5)
