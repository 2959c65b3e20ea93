"""A base is opened in one way: by any name, on the accelerator, in the type that suits it."""

from __future__ import annotations

import huggingface_hub
import pytest
import tiny
import torch

from pad_vllm import opened_base
from pad_vllm.opened_base import (
    base_folder,
    default_dtype,
    devices_for,
    open_base,
    open_model,
    weight_bytes,
)
from pad_vllm.persrm import PersRM


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


SPREAD = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "disk",
    "model.layers.2": "cpu",
    "model.layers.3": "cpu",
    "model.norm": "cpu",
    "lm_head": "cpu",
}


def test_a_base_that_is_spread_reads_and_learns_as_one_that_is_not(folder):
    found = []
    for device_map in (None, SPREAD):
        backbone = open_model(
            folder, dtype="float32", device=torch.device("cpu"), device_map=device_map
        )
        assert hasattr(backbone, "hf_device_map") == (device_map is not None)
        torch.manual_seed(0)
        model = PersRM(backbone, fork_layer=2, dimensions=("kind", "curt"))
        ids = torch.tensor([[5, 6, 7, 8, 9]])
        with torch.no_grad():
            model.head_B.normal_()
        h_B, h_T = model.hidden(ids)
        rewards = model.rewards(h_B, h_T, ids[..., None], torch.ones(1, 5, 2))
        rewards.sum().backward()
        down = model.lora_weights()[3, "down_proj"][1]
        found.append((h_B, rewards.detach(), down.grad, model.head_A.grad))
    for plain, spread in zip(*found, strict=True):
        assert torch.allclose(plain, spread, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "free", "expected"), [(1, 0.5, None), (2, 3.0, None), (2, 1.2, "auto")]
)
def test_several_accelerators_share_a_base_that_one_has_no_room_for(
    folder, monkeypatch, count, free, expected
):
    device = torch.device("cuda")
    size = weight_bytes(folder, "bfloat16", device)
    assert (
        size == weight_bytes(folder, None, device) == weight_bytes(folder, "float32", device) // 2
    )
    monkeypatch.setattr(opened_base, "default_device", lambda: device)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(
        torch.accelerator, "get_memory_info", lambda device: (int(free * size), int(4 * size))
    )
    assert devices_for(folder) == expected


def test_what_all_accelerators_together_have_no_room_for_is_refused(folder, monkeypatch):
    model = open_model(folder)
    model.hf_device_map = {"model": 0, "lm_head": "cpu"}
    monkeypatch.setattr(opened_base, "load_causal_lm", lambda folder, **settings: model)
    with pytest.raises(ValueError, match="accelerators have no room for its .* GiB in bfloat16"):
        open_model(folder, dtype="bfloat16", device_map="auto")
