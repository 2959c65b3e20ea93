"""pad_config.json: its round trip, and every refusal of it."""

import dataclasses
import json
import time
from pathlib import Path

import pytest

from pad_vllm.adapter import json_fields
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.backbone.embedding_sample import SAMPLE_SIZE
from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.adapter.manifest import AdapterConfig, read_config
from pad_vllm.merged_lora import MergedLoRA

FINGERPRINT = "sha256:" + "0" * 64
BACKBONE = Backbone("org/base", ("LlamaForCausalLM",), 32, 4, 64, FINGERPRINT)
CONFIG = AdapterConfig(
    format_version=1,
    backbone=BACKBONE,
    fork_layer=2,
    dimensions=("helpful", "humor"),
    head_rank=3,
    beta=0.5,
    top_k=10,
    training={"held_out": {"accuracy": 0.75}, "steps": 100},
)


def written(folder, **changes):
    """A folder whose pad_config.json is CONFIG's with keys replaced; `...` removes one."""
    raw = json.loads(CONFIG.to_json()) | changes
    raw = {key: value for key, value in raw.items() if value is not ...}
    (folder / "pad_config.json").write_text(json.dumps(raw))
    return folder


def refusal(folder) -> str:
    with pytest.raises(AdapterError) as caught:
        read_config(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_json_comes_back_as_it_went_sorted_and_indented():
    text = CONFIG.to_json()
    assert AdapterConfig.from_json(text) == CONFIG
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2) + "\n"


def test_a_folder_with_nothing_but_the_config_can_be_read(tmp_path):
    assert read_config(written(tmp_path)) == CONFIG
    assert read_config(str(tmp_path)) == CONFIG


def test_a_whole_beta_reads_as_the_float_it_is(tmp_path):
    config = read_config(written(tmp_path, beta=1))
    assert config == dataclasses.replace(CONFIG, beta=1.0)
    assert config.to_json() == dataclasses.replace(CONFIG, beta=1.0).to_json()


def test_a_backbone_without_fingerprint_is_written_as_null(tmp_path):
    backbone = json.loads(CONFIG.to_json())["backbone"] | {"fingerprint": None}
    assert read_config(written(tmp_path, backbone=backbone)).backbone.fingerprint is None


@pytest.mark.parametrize("name", ["org/adapter", "my-user/pad_llama.v1"])
def test_a_hub_name_is_told_to_be_fetched_first(name):
    with pytest.raises(AdapterError, match="local folder") as caught:
        read_config(name)
    assert f"hf download {name}" in str(caught.value)


def test_a_missing_folder_says_where_it_looked(tmp_path):
    with pytest.raises(AdapterError, match=r"does not exist.*this process runs in"):
        read_config(tmp_path / "absent")


def test_a_file_is_not_a_folder(tmp_path):
    written(tmp_path)
    with pytest.raises(AdapterError, match="is a file; accepted is the folder"):
        read_config(tmp_path / "pad_config.json")


def test_a_plain_lora_says_what_it_lacks(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    message = refusal(tmp_path)
    assert "has no pad_config.json (it has: adapter_config.json)" in message
    assert "pad-vllm train" in message


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"{", id="cut short"),
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"\xff\xfe", id="bytes"),
        pytest.param(b'{"a":' * 100_000, id="nested"),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", id="digits"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "pad_config.json").write_bytes(content)
    assert "pad_config.json: " in refusal(tmp_path)


@pytest.mark.parametrize("version", [0, 5, "1", None, True, 1.5, 2.0, ...])
def test_another_format_version_is_refused_before_anything_else(tmp_path, version):
    message = refusal(written(tmp_path, format_version=version, surprise=1))
    assert "format_version is " in message
    assert "reads 1 to 4" in message
    assert "Upgrade" in message


def test_a_fork_at_the_top_needs_the_second_version_and_none_is_above_it():
    config = dataclasses.replace(CONFIG, format_version=2, fork_layer=4)
    assert config.heads_only
    assert AdapterConfig.from_json(config.to_json()) == config
    assert not dataclasses.replace(CONFIG, format_version=2).heads_only
    with pytest.raises(AdapterError, match="fork_layer is 4; accepted: an integer from 0 to 3"):
        dataclasses.replace(CONFIG, fork_layer=4)
    with pytest.raises(AdapterError, match="fork_layer is 5; accepted: an integer from 0 to 4"):
        dataclasses.replace(config, fork_layer=5)


MERGED = {
    "base": "org/base",
    "base_fingerprint": FINGERPRINT,
    "lora": "sql",
    "lora_fingerprint": "sha256:" + "1" * 64,
}


def test_a_lora_that_was_merged_into_the_backbone_needs_the_fourth_version(tmp_path):
    backbone = json.loads(CONFIG.to_json())["backbone"] | {"merged": MERGED}
    config = read_config(written(tmp_path, backbone=backbone, format_version=4))
    assert config.backbone.merged == MergedLoRA(**MERGED)
    assert AdapterConfig.from_json(config.to_json()) == config
    assert config.backbone.unmerged.fingerprint == FINGERPRINT
    message = refusal(written(tmp_path, backbone=backbone, format_version=3))
    assert "format_version is 3; accepted: 4 for a merged LoRA" in message


def test_an_adapter_without_one_is_written_as_before():
    assert "merged" not in CONFIG.to_json()
    assert CONFIG.backbone.unmerged is CONFIG.backbone


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lora": 3}, "backbone.merged.lora is 3; accepted: text"),
        ({"lora_fingerprint": "1"}, "backbone.merged.lora_fingerprint is '1'; accepted: 'sha256:'"),
        ({"loar": "sql"}, "unknown: backbone.merged.loar"),
    ],
)
def test_what_is_said_of_a_merged_lora_is_checked(tmp_path, changes, expected):
    backbone = json.loads(CONFIG.to_json())["backbone"] | {"merged": MERGED | changes}
    assert expected in refusal(written(tmp_path, backbone=backbone, format_version=4))


def test_missing_and_unknown_keys_are_both_named(tmp_path):
    message = refusal(written(tmp_path, fork_layer=..., fork_layers=2))
    assert "missing: fork_layer;" in message
    assert "unknown: fork_layers." in message
    assert "Did you mean 'fork_layer'?" in message


def test_keys_of_the_backbone_are_named_with_their_place(tmp_path):
    backbone = json.loads(CONFIG.to_json())["backbone"]
    del backbone["vocab_size"]
    assert "missing: backbone.vocab_size" in refusal(written(tmp_path, backbone=backbone))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fork_layer", 4),
        ("fork_layer", -1),
        ("fork_layer", 2.0),
        ("fork_layer", True),
        ("head_rank", 0),
        ("head_rank", "3"),
        ("beta", "1"),
        ("beta", None),
        ("beta", True),
        ("beta", float("nan")),
        ("beta", float("inf")),
        ("beta", -2e6),
        ("beta", 10**400),
        ("top_k", 0),
        ("top_k", 65),
        ("top_k", 10.0),
        ("training", []),
        ("backbone", "org/base"),
        ("dimensions", []),
        ("dimensions", "helpful"),
        ("dimensions", ["helpful", "helpful"]),
        ("dimensions", [""]),
        ("dimensions", [" helpful"]),
        ("dimensions", ["helpful "]),
        ("dimensions", ["help=ful"]),
        ("dimensions", ["help,ful"]),
        ("dimensions", ["1st"]),
        ("dimensions", ["humör"]),
        ("dimensions", ["line\n"]),
        ("dimensions", [1]),
    ],
)
def test_a_value_out_of_its_range_is_refused_with_the_range(tmp_path, key, value):
    message = refusal(written(tmp_path, **{key: value}))
    assert "accepted: " in message
    assert "Correct it" in message
    assert key.removesuffix("s") in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 3),
        ("architectures", []),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", [1]),
        ("hidden_size", 0),
        ("num_layers", "4"),
        ("vocab_size", None),
        ("fingerprint", "md5:1"),
        ("fingerprint", 3),
    ],
)
def test_a_wrong_backbone_is_refused_with_what_is_accepted(tmp_path, key, value):
    backbone = json.loads(CONFIG.to_json())["backbone"] | {key: value}
    message = refusal(written(tmp_path, backbone=backbone))
    assert f"backbone.{key} is " in message
    assert "accepted: " in message


@pytest.mark.parametrize("training", [{"loss": float("nan")}, {"model": object()}])
def test_a_training_record_that_is_not_plain_json_is_refused_when_written(training):
    with pytest.raises(AdapterError, match="'training' is not plain JSON"):
        dataclasses.replace(CONFIG, training=training).to_json()


SAMPLE = tuple(place / 8 for place in range(SAMPLE_SIZE))


def with_sample(sample):
    backbone = dataclasses.replace(BACKBONE, embedding_sample=sample)
    return dataclasses.replace(CONFIG, backbone=backbone)


def test_an_embedding_sample_is_written_as_landmarks_if_there_is_one(tmp_path):
    assert "landmarks" not in json.loads(CONFIG.to_json())["backbone"]
    given = with_sample(SAMPLE)
    assert AdapterConfig.from_json(given.to_json()).backbone.embedding_sample == SAMPLE
    assert with_sample(SAMPLE).backbone == BACKBONE  # the fingerprint says more


@pytest.mark.parametrize("value", [[], [0.5], ["a"] * SAMPLE_SIZE, "landmarks", 3])
def test_invalid_landmarks_are_refused(tmp_path, value):
    backbone = json.loads(CONFIG.to_json())["backbone"] | {"landmarks": value}
    message = refusal(written(tmp_path, backbone=backbone))
    assert "backbone.landmarks is " in message
    assert f"{SAMPLE_SIZE} numbers" in message


def test_guards_are_written_where_they_are_on_and_nowhere_else(tmp_path):
    assert not {"no_repeat", "min_p", "loop_price"} & set(json.loads(CONFIG.to_json()))
    given = dataclasses.replace(CONFIG, no_repeat=3, min_p=0.05, loop_price=0.25)
    assert AdapterConfig.from_json(given.to_json()) == given


@pytest.mark.parametrize("value", [-0.1, 2, "0.05", True, None])
def test_a_share_that_is_none_is_refused(tmp_path, value):
    message = refusal(written(tmp_path, min_p=value))
    assert "min_p is " in message
    assert "a number from 0 to 1" in message


@pytest.mark.parametrize("value", [-0.1, 10.5, "0.25", True, None])
def test_a_price_that_no_request_may_ask_for_is_no_default(tmp_path, value):
    message = refusal(written(tmp_path, loop_price=value))
    assert "loop_price is " in message
    assert "a number from 0 to 10" in message


def test_a_chat_template_is_written_where_one_was_given_and_nowhere_else(tmp_path):
    assert "chat_template" not in json.loads(CONFIG.to_json())
    assert read_config(written(tmp_path)).chat_template is None
    given = dataclasses.replace(CONFIG, chat_template="{{ messages }}\n")
    assert AdapterConfig.from_json(given.to_json()) == given
    assert read_config(written(tmp_path, chat_template="{{ messages }}\n")) == given


@pytest.mark.parametrize("value", [3, "", ["{{ messages }}"]])
def test_a_chat_template_that_is_no_text_is_refused(tmp_path, value):
    message = refusal(written(tmp_path, chat_template=value))
    assert "chat_template is " in message
    assert "accepted: a Jinja template" in message


def test_many_dimensions_are_counted_up_to_in_one_pass(tmp_path):
    dimensions = [f"a{number}" for number in range(100_000)]
    started = time.process_time()
    assert len(read_config(written(tmp_path, dimensions=dimensions)).dimensions) == 100_000
    assert time.process_time() - started < 5


def test_of_many_unknown_keys_a_few_are_named(tmp_path):
    unknown = {f"key{number}": 1 for number in range(10_000)}
    message = refusal(written(tmp_path, **unknown))
    assert "key0" in message
    assert "and 9992 more" in message
    assert len(message) < 2000


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    folder = written(tmp_path, training={"notes": "x" * 1000})
    monkeypatch.setattr(json_fields, "MAX_JSON_BYTES", 1000)
    monkeypatch.setattr(Path, "read_text", None)
    assert "accepted: at most 1000" in refusal(folder)
