"""An unfinished run goes on only from the data and the base that it was begun with."""

from __future__ import annotations

import dataclasses
import json

import planted_preferences as planted
import pytest
import tiny

from pad_vllm.adapter.backbone.weight_fingerprint import fingerprint
from pad_vllm.training.run_folder import run_folder
from pad_vllm.training.run_inputs import (
    hub_revision,
    start_anew_where_changed,
    tokenizer_digest,
)
from pad_vllm.training.training_run import TrainingRun

INPUTS = {
    "base": "sha256:aa",
    "tokenizer": "sha256:bb",
    "data": {"jsonl=a.jsonl": {"a.jsonl": "sha256:cc"}},
    "revisions": {"base": "main"},
}


@pytest.fixture
def begun(tmp_path):
    """A run's folder after its first start, with something of every stage."""
    assert start_anew_where_changed(tmp_path, INPUTS) == []
    for name in ("stage1", "stage2", "trunk", "tensorboard"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    for name in ("answers.jsonl", "moments-0-of-1.safetensors", "prefix-a.safetensors", "log.txt"):
        (tmp_path / name).touch()
    return tmp_path


def kept(folder):
    return {path.name for path in folder.iterdir()}


def test_the_same_inputs_go_on(begun):
    before = kept(begun)
    assert start_anew_where_changed(begun, {**INPUTS, "revisions": {"base": "newer"}}) == []
    assert kept(begun) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"data": {"jsonl=a.jsonl": {"a.jsonl": "sha256:dd"}}},
            "data jsonl=a.jsonl a.jsonl has changed",
        ),
        ({"data": {"jsonl=a.jsonl": {}}}, "(sha256:cc, now None)"),
        (
            {"base": "sha256:ee"},
            "base has changed since this run was begun (sha256:aa, now sha256:ee)",
        ),
        ({"tokenizer": "sha256:ff"}, "tokenizer has changed"),
        ({"sampling": {"temperature": 1.0}}, "sampling has changed"),
    ],
)
def test_changed_inputs_start_the_stages_anew_and_say_so(begun, change, said):
    first, *_, last = start_anew_where_changed(begun, {**INPUTS, **change})
    assert said in first
    assert last == "the stages of this run start anew"
    assert kept(begun) == {"inputs.json", "log.txt", "tensorboard"}
    assert start_anew_where_changed(begun, {**INPUTS, **change}) == []


def test_a_run_of_before_records_goes_on_with_a_warning(begun):
    (begun / "inputs.json").unlink()
    (warning,) = start_anew_where_changed(begun, INPUTS)
    assert warning.startswith("WARNING: the earlier start of this run did not record")
    assert (begun / "stage1" / "file").exists()
    assert start_anew_where_changed(begun, INPUTS) == []


def test_a_tokenizer_is_told_by_its_tokens_and_its_template():
    same, other = tiny.tokenizer(), tiny.tokenizer()
    assert tokenizer_digest(same) == tokenizer_digest(other)
    other.chat_template += " "
    assert tokenizer_digest(same) != tokenizer_digest(other)
    more = tiny.tokenizer()
    more.add_tokens(["another"])
    assert tokenizer_digest(same) != tokenizer_digest(more)


def test_a_snapshots_folder_is_its_revision(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    assert hub_revision(snapshot) == "0123abcd"
    assert hub_revision(tmp_path) is None


def test_data_that_changed_under_the_same_command_is_trained_on_from_the_start(tmp_path, capsys):
    settings = planted.settings(tmp_path, recipe={"epochs": 1, "head_epochs": 0}, prompted=False)
    cache, command = tmp_path / "cache", "pad-vllm train ..."
    planted.kill(TrainingRun(settings, cache, command), 1, 5)
    inputs = json.loads((run_folder(settings) / "inputs.json").read_text())
    assert inputs["base"] == fingerprint(tmp_path / "base")
    TrainingRun(settings, cache, command)
    assert list((run_folder(settings) / "stage1").glob("step-*"))  # the same data goes on
    planted.write(tmp_path / "data.jsonl", prompts=39)
    capsys.readouterr()
    run = TrainingRun(settings, cache, command)
    said = capsys.readouterr().out
    assert f"{tmp_path / 'data.jsonl'} has changed since this run was begun" in said
    assert "the stages of this run start anew" in said
    assert not (run_folder(settings) / "stage1").exists()
    adapter = run.train()
    assert adapter.config.training["made_from"]["data"] != inputs["data"]
    fresh = dataclasses.replace(settings, out=str(tmp_path / "fresh"))
    planted.require_equal(adapter, TrainingRun(fresh, cache, command).train())
