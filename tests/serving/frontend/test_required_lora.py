"""Guided requests under a LoRA: accepted for the adapter that was trained with it, by its files."""

from __future__ import annotations

import shutil

import pytest
import tiny
from vllm.lora.request import LoRARequest

from pad_vllm.adapter.lora_fingerprint import lora_fingerprint
from pad_vllm.merged_lora import MergedLoRA
from pad_vllm.serving.frontend.required_lora import require_trained_lora


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("loras")
    base = tiny.checkpoint("llama", root / "base")
    return {
        name: tiny.write_lora(base, root / name, seed) for seed, name in enumerate(("sql", "law"))
    }


@pytest.fixture
def trained(folders):
    fingerprint = lora_fingerprint(folders["sql"])
    return MergedLoRA("org/base", "sha256:" + "0" * 64, "sql", fingerprint)


def asked(folder, name="served-name"):
    return LoRARequest(name, 1, str(folder))


def test_the_lora_of_the_training_is_accepted_under_any_name_and_from_any_folder(
    folders, trained, tmp_path
):
    require_trained_lora(trained, asked(folders["sql"]), "base")
    moved = shutil.copytree(folders["sql"], tmp_path / "moved")
    require_trained_lora(trained, asked(moved), "base")


def test_another_lora_is_refused_with_the_fingerprints_of_both_and_no_path(folders, trained):
    with pytest.raises(ValueError, match="LoRA 'other'.*with the LoRA 'sql'") as caught:
        require_trained_lora(trained, asked(folders["law"], "other"), "base")
    message = str(caught.value)
    assert lora_fingerprint(folders["law"]) in message
    assert trained.lora_fingerprint in message
    assert str(folders["law"]) not in message


def test_files_that_are_replaced_are_read_again(folders, trained, tmp_path):
    moved = shutil.copytree(folders["sql"], tmp_path / "moved")
    require_trained_lora(trained, asked(moved), "base")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(folders["law"] / name, moved / name)
    with pytest.raises(ValueError, match="accepted: guided requests under that one"):
        require_trained_lora(trained, asked(moved), "base")


def test_a_guided_request_without_a_lora_is_told_which(trained):
    with pytest.raises(ValueError, match="without a LoRA, of the model 'base'.*the LoRA 'sql'"):
        require_trained_lora(trained, None, "base")


def test_an_adapter_of_the_base_alone_guides_no_lora(folders):
    require_trained_lora(None, None, "base")
    with pytest.raises(ValueError, match="the LoRA 'law'.*accepted: guided requests of the base"):
        require_trained_lora(None, asked(folders["law"], "law"), "base")


def test_files_that_cannot_be_read_are_no_match_and_tell_no_path(trained, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="its files cannot be compared") as caught:
        require_trained_lora(trained, asked(tmp_path), "base")
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(ValueError, match="not on this machine"):
        require_trained_lora(trained, asked("org/absent"), "base")
