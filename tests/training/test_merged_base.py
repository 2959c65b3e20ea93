"""A LoRA merged into a base: the checkpoint computes what PEFT does, and says what it was made of."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.backbone.backbone import Backbone, require_same_backbone
from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.adapter.lora_fingerprint import lora_fingerprint
from pad_vllm.cli.app import app
from pad_vllm.training.merged_base import merge_lora


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, a LoRA of it, and the two merged."""
    root = tmp_path_factory.mktemp("merged")
    base = tiny.checkpoint("qwen2", root / "base")
    lora, out = tiny.write_lora(base, root / "sql", seed=1), root / "out"
    typed = ["merge-lora", str(base), str(lora), "--out", str(out)]
    result = CliRunner().invoke(app, typed, env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    assert "base with the LoRA sql (sha256:" in result.output
    return base, lora, out


def test_the_checkpoint_computes_what_base_and_lora_do(made):
    base, lora, out = made
    load = AutoModelForCausalLM.from_pretrained
    ids = torch.tensor([[5, 9, 30, 200]])
    with torch.no_grad():
        expected = PeftModel.from_pretrained(load(base), lora)(ids).logits
        torch.testing.assert_close(load(out)(ids).logits, expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(load(base)(ids).logits, expected, atol=1e-2)
    assert AutoTokenizer.from_pretrained(out).chat_template


def test_it_says_which_base_and_which_lora_as_long_as_its_weights_are_these(made, tmp_path):
    base, lora, out = made
    backbone = Backbone.from_checkpoint(out)
    assert backbone.merged.lora == "sql"
    assert backbone.merged.lora_fingerprint == lora_fingerprint(lora)
    assert backbone.unmerged == Backbone.from_checkpoint(base)
    retrained = tiny.checkpoint("qwen2", tmp_path / "retrained")
    record = out / "pad_merged_lora.json"
    (retrained / record.name).write_bytes(record.read_bytes())
    assert Backbone.from_checkpoint(retrained).merged is None
    broken = json.loads(record.read_text()) | {"lora_fingerprint": "md5:1"}
    (retrained / record.name).write_text(json.dumps(broken))
    with pytest.raises(AdapterError, match="pad_merged_lora.json.lora_fingerprint is 'md5:1'; acc"):
        Backbone.from_checkpoint(retrained)


def test_an_adapter_that_was_trained_on_it_keeps_that_and_needs_the_fourth_version(made, tmp_path):
    _, _, out = made
    layers = tiny.config("qwen2").num_hidden_layers
    folder = tiny.write_adapter(out, tmp_path / "adapter", fork_layer=layers, std=0.1)
    config = load_adapter(folder).config
    assert config.format_version == 4
    assert config.backbone.merged == Backbone.from_checkpoint(out).merged


def test_the_base_without_the_lora_is_refused_with_both_ways_to_serve_it(made):
    base, _, out = made
    trained, served = Backbone.from_checkpoint(out), Backbone.from_checkpoint(base)
    with pytest.raises(AdapterError, match="'base' without the LoRA 'sql'.*--enable-lora.*merged"):
        require_same_backbone(trained, served)
    assert require_same_backbone(trained, trained) == []
    assert require_same_backbone(trained.unmerged, served) == []


def test_a_folder_with_files_is_left_alone(made):
    base, lora, out = made
    with pytest.raises(ValueError, match="exists; accepted: a new or an empty folder"):
        merge_lora(base, lora, out)
