"""The model an adapter belongs to: how a checkpoint is read, and which other it may be served with."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from pad_vllm.adapter.backbone.backbone import Backbone, require_same_backbone
from pad_vllm.adapter.backbone.embedding_sample import SAMPLE_SIZE
from pad_vllm.adapter.backbone.weight_fingerprint import fingerprint
from pad_vllm.adapter.json_fields import AdapterError

FINGERPRINT = "sha256:" + "0" * 64
BACKBONE = Backbone("org/base", ("LlamaForCausalLM",), 32, 4, 64, FINGERPRINT)


def served(**changes) -> Backbone:
    return dataclasses.replace(BACKBONE, name="served/base", **changes)


def test_the_same_backbone_under_another_name_fits():
    assert require_same_backbone(BACKBONE, served()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("architectures", ("GemmaForCausalLM",)),
        ("hidden_size", 33),
        ("num_layers", 5),
        ("vocab_size", 65),
    ],
)
def test_another_architecture_or_shape_is_refused_naming_both_sides(name, value):
    for allow in (False, True):
        with pytest.raises(AdapterError) as caught:
            require_same_backbone(BACKBONE, served(**{name: value}), allow_mismatch=allow)
        message = str(caught.value)
        assert "'org/base'" in message
        assert "'served/base'" in message
        for side in (getattr(BACKBONE, name), value):
            assert (side[0] if isinstance(side, tuple) else str(side)) in message


def test_other_weights_are_refused_or_warned_of_naming_both_sides():
    other = served(fingerprint="sha256:" + "f" * 64)
    with pytest.raises(AdapterError, match=r"0{64}.*f{64}.*allow_backbone_mismatch"):
        require_same_backbone(BACKBONE, other)
    [warning] = require_same_backbone(BACKBONE, other, allow_mismatch=True)
    assert "0" * 64 in warning
    assert "f" * 64 in warning


def test_weights_that_cannot_be_read_are_a_warning():
    [warning] = require_same_backbone(BACKBONE, served(fingerprint=None))
    assert "unknown" in warning


def test_an_adapter_of_unknown_weights_needs_the_override_on_real_ones():
    unknown = dataclasses.replace(BACKBONE, fingerprint=None)
    with pytest.raises(AdapterError, match="with weights unknown"):
        require_same_backbone(unknown, served())
    assert len(require_same_backbone(unknown, served(), allow_mismatch=True)) == 1


SAMPLE = tuple(place / 8 for place in range(SAMPLE_SIZE))
WITH_SAMPLE = dataclasses.replace(BACKBONE, embedding_sample=SAMPLE)


def test_a_quantised_copy_is_compared_by_its_embedding_sample():
    other = {"fingerprint": "sha256:" + "f" * 64}
    copy = served(**other, embedding_sample=SAMPLE)
    [note] = require_same_backbone(WITH_SAMPLE, copy, quant_method="awq")
    assert "'served/base' is quantised (awq); its token embedding is that of 'org/base'" in note
    # The copy not declared as quantised; the quantised one without an embedding sample.
    for strange in (copy, served(**other)):
        with pytest.raises(AdapterError, match=r"0{64}.*f{64}.*allow_backbone_mismatch"):
            require_same_backbone(WITH_SAMPLE, strange, quant_method="awq" * (strange is not copy))
    with pytest.raises(AdapterError, match=r"0{64}.*f{64}.*allow_backbone_mismatch"):
        require_same_backbone(BACKBONE, copy, quant_method="awq")


def test_a_quantised_copy_of_another_model_is_refused_or_warned_of():
    theirs = (*SAMPLE[:-1], 99.0)
    copy = served(fingerprint="sha256:" + "f" * 64, embedding_sample=theirs)
    with pytest.raises(AdapterError, match="not that of 'org/base'.*without a rotation"):
        require_same_backbone(WITH_SAMPLE, copy, quant_method="awq")
    [warning] = require_same_backbone(WITH_SAMPLE, copy, quant_method="awq", allow_mismatch=True)
    assert "Rewards may mean little" in warning


def test_weights_that_are_in_no_file_are_compared_by_the_embedding_sample():
    elsewhere = served(fingerprint=None, embedding_sample=SAMPLE)
    [note] = require_same_backbone(WITH_SAMPLE, elsewhere)
    assert "are not in its folder; its token embedding is that of 'org/base'" in note
    strange = dataclasses.replace(elsewhere, embedding_sample=(*SAMPLE[:-1], 99.0))
    with pytest.raises(AdapterError, match="not in its folder, and .*not that of 'org/base'"):
        require_same_backbone(WITH_SAMPLE, strange)
    for unknown in (BACKBONE, WITH_SAMPLE):
        [note] = require_same_backbone(unknown, served(fingerprint=None))
        assert "could not be fingerprinted" in note


def checkpoint(folder, config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    return folder


PLAIN = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "vocab_size": 64,
}


def test_a_backbone_is_read_from_a_checkpoint(tmp_path):
    folder = checkpoint(tmp_path / "tiny", PLAIN)
    expected_fingerprint = fingerprint(folder)
    expected = Backbone("tiny", ("LlamaForCausalLM",), 32, 4, 64, expected_fingerprint)
    assert Backbone.from_checkpoint(folder) == expected
    assert Backbone.from_checkpoint(folder, "org/tiny").name == "org/tiny"
    assert Backbone.from_config(folder) == dataclasses.replace(expected, fingerprint=None)


def test_a_nested_text_config_is_read(tmp_path):
    text = {key: value for key, value in PLAIN.items() if key != "architectures"}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    backbone = Backbone.from_config(checkpoint(tmp_path / "nested", config | {"hidden_size": 9}))
    assert (backbone.hidden_size, backbone.num_layers, backbone.vocab_size) == (32, 4, 64)


def test_what_a_config_leaves_to_its_class_comes_from_transformers(tmp_path):
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {"hidden_size": 40, "num_hidden_layers": 3, "model_type": "gemma3_text"},
    }
    backbone = Backbone.from_config(checkpoint(tmp_path / "gemma", config))
    assert (backbone.hidden_size, backbone.num_layers) == (40, 3)
    assert backbone.vocab_size > 200_000


def test_a_config_object_says_the_same_as_its_file(tmp_path):
    from transformers import LlamaConfig

    config = LlamaConfig(**PLAIN)
    folder = checkpoint(tmp_path / "tiny", config.to_dict())
    assert Backbone.from_hf_config(config, name="tiny") == Backbone.from_config(folder)
    assert (
        Backbone.from_hf_config(config, name="x", fingerprint=FINGERPRINT).fingerprint
        == FINGERPRINT
    )


def test_a_snapshot_in_the_hubs_cache_is_called_by_its_hub_name(tmp_path):
    folder = checkpoint(tmp_path / "models--org--name" / "snapshots" / "abc", PLAIN)
    assert Backbone.from_config(folder).name == "org/name"


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(AdapterError, match=r"config.json does not exist. Point to the folder"):
        Backbone.from_config(tmp_path)


def test_weights_that_cannot_be_read_are_refused_where_they_are_needed_and_unknown_elsewhere(
    tmp_path,
):
    with pytest.raises(ValueError, match="no .*safetensors files"):
        BACKBONE.with_weights(tmp_path)
    assert BACKBONE.with_weights(tmp_path, required=False) is BACKBONE
