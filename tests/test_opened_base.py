"""A base is opened in one way: by any name, on the accelerator, in the type that suits it."""

from __future__ import annotations

import huggingface_hub
import pytest
import tiny
import torch

from pad_vllm import opened_base
from pad_vllm.opened_base import base_folder, default_dtype, open_base, open_model


@pytest.fixture
def folder(tmp_path):
    return tiny.checkpoint("llama", tmp_path / "base")


def test_a_folder_and_a_hub_name_open_the_same_base(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder))
    assert base_folder(str(folder)) == base_folder("somebody/a-base") == folder
    model, tokenizer, found = open_base("somebody/a-base")
    assert found == folder
    assert tokenizer.chat_template
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("dtype", [None, "bfloat16", "auto"])
def test_the_type_is_the_devices_default_unless_one_is_asked_for(folder, dtype):
    model = open_model(folder, dtype=dtype)
    expected = default_dtype(opened_base.default_device()) if dtype is None else dtype
    stored = torch.float32  # of the tiny checkpoint
    assert model.dtype == (stored if dtype == "auto" else getattr(torch, expected))


@pytest.mark.parametrize(
    ("device", "capabilities", "expected"),
    [
        ("cpu", {"avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ("cpu", {"avx512_bf16": False, "avx2": True}, "float32"),
        ("cuda", {}, "bfloat16"),
    ],
)
def test_bfloat16_is_the_default_where_it_is_fast(monkeypatch, device, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert default_dtype(torch.device(device)) == expected


def test_the_model_goes_to_the_accelerator(folder, monkeypatch):
    monkeypatch.setattr(opened_base, "default_device", lambda: torch.device("meta"))
    model = open_model(folder)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert model.dtype == torch.bfloat16
