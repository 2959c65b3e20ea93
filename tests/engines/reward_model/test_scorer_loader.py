"""Where a reward model's backbone comes from, and what is checked before it runs. No network."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import tiny
import torch
import transformers

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.config import PADConfig
from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.engines.reward_model import scorer_loader

WEIGHTS = "*.safetensors"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return tiny.checkpoint("llama", tmp_path_factory.mktemp("backbone") / "llama")


@pytest.fixture
def adapter(backbone, tmp_path):
    """One whose backbone is a hub's model."""
    made = load_adapter(tiny.write_adapter(backbone, tmp_path / "mine", fork_layer=2, std=0.05))
    named = dataclasses.replace(made.config.backbone, name="org/model")
    return dataclasses.replace(made, config=dataclasses.replace(made.config, backbone=named))


@pytest.fixture
def hub(backbone, monkeypatch):
    """A hub that has the backbone under any name; what was asked of it, in `asked`."""
    made = SimpleNamespace(folder=backbone, asked=[], cached=None)

    def snapshot_download(name, *, revision, allow_patterns, ignore_patterns):
        made.asked.append((name, revision, allow_patterns))
        return str(made.folder)

    def try_to_load_from_cache(name, file, cache_dir=None, revision=None):
        return made.cached and str(made.cached / file)

    scorer_loader._fetch_snapshot.cache_clear()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", try_to_load_from_cache)
    return made


def settings(backbone=""):
    return PADConfig(adapter="somewhere", engine="resident", backbone=backbone)


def test_what_the_operator_names_is_fetched_at_the_revision_that_the_name_ends_in(adapter, hub):
    assert scorer_loader.require_reward_backbone(settings("org/model@v1"), adapter) == []
    assert scorer_loader.require_reward_backbone(settings("org/other"), adapter) == []

    assert [asked[:2] for asked in hub.asked] == [("org/model", "v1"), ("org/other", None)]
    for _, _, patterns in hub.asked:
        assert WEIGHTS in patterns
        assert not {"*", "*.bin", "*.py", "*.pt"} & set(patterns)


def test_the_front_end_and_a_tokenizer_leave_the_weights_to_the_process_that_runs_them(
    adapter, hub
):
    scorer_loader.require_reward_backbone(settings("org/model"), adapter, weights=False)
    assert (
        scorer_loader.reward_tokenizer(settings("org/model"), adapter.config).eos_token == "<eos>"
    )
    assert all(WEIGHTS not in patterns for _, _, patterns in hub.asked)


def test_a_download_that_was_broken_off_is_finished_by_the_process_that_needs_it(
    adapter, hub, backbone, tmp_path
):
    hub.folder = tmp_path / "half"
    shutil.copytree(backbone, hub.folder)
    weights = hub.folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    unknown = scorer_loader.require_reward_backbone(settings("org/model"), adapter, weights=False)
    assert "could not be fingerprinted" in unknown[0]
    with pytest.raises(ValueError, match="is cut short"):
        scorer_loader.require_reward_backbone(settings("org/model"), adapter)


def test_fetched_weights_that_are_not_the_adapters_are_refused_before_they_are_loaded(
    adapter, hub, tmp_path
):
    hub.folder = tmp_path / "retrained"
    tiny.model("llama", seed=1).save_pretrained(hub.folder)
    with pytest.raises(AdapterError, match="set allow_backbone_mismatch to true"):
        scorer_loader.require_reward_backbone(settings("org/model"), adapter)


def test_what_an_adapter_names_is_never_fetched(adapter, hub):
    with pytest.raises(
        ValueError,
        match="'org/model', named by the adapter.*--additional-config.pad.backbone org/m",
    ):
        scorer_loader.require_reward_backbone(settings(), adapter)
    assert hub.asked == []


def test_what_an_adapter_names_is_used_where_it_is_here_already(adapter, hub, backbone):
    hub.cached = backbone
    assert scorer_loader.require_reward_backbone(settings(), adapter) == []
    assert hub.asked == []


def test_without_a_network_the_cache_is_used(adapter, hub, backbone, monkeypatch):
    def offline(*_args, **_more):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match="no network.*--additional-config.pad.backbone PATH"):
        scorer_loader.require_reward_backbone(settings("org/model"), adapter)
    hub.cached = backbone
    assert scorer_loader.require_reward_backbone(settings("org/model"), adapter) == []


def test_a_folder_of_pickles_is_refused(adapter, backbone, tmp_path):
    pickles = tmp_path / "pickles"
    transformers.AutoConfig.from_pretrained(backbone).save_pretrained(pickles)
    torch.save({}, pickles / "pytorch_model.bin")
    with pytest.raises(ValueError, match="only safetensors checkpoints are accepted"):
        scorer_loader.require_reward_backbone(settings(str(pickles)), adapter, weights=False)


def test_the_checked_folder_is_what_is_loaded_and_never_as_pickle(
    adapter, hub, backbone, monkeypatch
):
    class Loaded(Exception):
        """Far enough."""

    def from_pretrained(path, **given):
        assert str(path) == str(backbone)
        assert given["use_safetensors"]
        assert not given["trust_remote_code"]
        raise Loaded

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(Loaded):
        scorer_loader.make_reward_scorer(
            settings("org/model"),
            adapter,
            FailureLog(print),
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
