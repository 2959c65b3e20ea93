"""The fingerprint of a LoRA of the base: what changes hidden states changes it, and nothing else does."""

import json
import shutil

import pytest
import tiny
from safetensors.torch import load_file, save_file

from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.adapter.lora_fingerprint import lora_fingerprint

TENSORS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("loras")
    return tiny.write_lora(tiny.checkpoint("llama", root / "base"), root / "lora", seed=1)


@pytest.fixture
def lora(written, tmp_path):
    """A LoRA that a test may change."""
    return shutil.copytree(written, tmp_path / "copy")


def change_settings(folder, **changes):
    settings = json.loads((folder / SETTINGS).read_text()) | changes
    (folder / SETTINGS).write_text(json.dumps(settings))


def test_a_copy_under_another_name_has_the_same_one(written, lora):
    change_settings(
        lora, base_model_name_or_path="elsewhere", inference_mode=False, lora_alpha=16.0
    )
    (lora / "README.md").write_text("moved")
    assert lora_fingerprint(lora) == lora_fingerprint(written)


@pytest.mark.parametrize("changes", [{"lora_alpha": 32}, {"r": 4}, {"use_rslora": True}])
def test_what_the_tensors_are_multiplied_by_changes_it(written, lora, changes):
    change_settings(lora, **changes)
    assert lora_fingerprint(lora) != lora_fingerprint(written)


def test_other_tensors_change_it(written, lora):
    tensors = load_file(lora / TENSORS)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, lora / TENSORS)
    assert lora_fingerprint(lora) != lora_fingerprint(written)


def test_a_lora_of_the_vocabulary_is_refused_by_name(lora):
    tensors = load_file(lora / TENSORS)
    first = next(iter(tensors))
    tensors["base_model.model.lm_head.lora_A.weight"] = tensors[first].clone()
    save_file(tensors, lora / TENSORS)
    with pytest.raises(
        AdapterError, match="has base_model.model.lm_head.*accepted: a LoRA of layers"
    ):
        lora_fingerprint(lora)


def test_what_vllm_would_compute_otherwise_is_refused_by_name(lora):
    change_settings(lora, rank_pattern={"q_proj": 4})
    with pytest.raises(AdapterError, match="rank_pattern is .*accepted: this setting off"):
        lora_fingerprint(lora)
