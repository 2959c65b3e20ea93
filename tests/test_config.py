"""Engine-wide settings: what is read, what is refused, and that reading them is cheap."""

import subprocess
import sys

import pytest

from pad_vllm.config import PADConfig


def read(**settings):
    return PADConfig.from_additional_config({"pad": {"adapter": "/a", **settings}})


def refusal(additional) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the message is what is asserted
        PADConfig.from_additional_config(additional)
    return str(caught.value)


def test_an_adapter_alone_takes_every_default():
    assert read() == PADConfig(
        adapter="/a",
        engine="shared",
        load_format="auto",
        max_beta=10.0,
        max_top_k=100,
        allow_backbone_mismatch=False,
    )


def test_every_setting_is_read():
    given = {
        "engine": "ray",
        "adapters": {"work": "/b"},
        "adapter_root": "/c",
        "page": True,
        "dimension_jobs": True,
        "backbone": "org/model",
        "device": "cuda:1",
        "cache_gib": 0.5,
        "pass_tokens": 64,
        "candidates": "first",
        "chat_template": "/t.jinja",
        "ray_address": "ray://host:10001",
        "ray_actors": 2,
        "ray_resources": {"num_gpus": 1},
        "ray_deadline_s": 0.5,
        "on_failure": "stop",
        "reasoning": "unguided",
        "load_format": "dummy",
        "instructions": True,
        "fork_layer": 3,
        "max_instructions": 5,
        "max_instruction_tokens": 6,
        "max_beta": 2,
        "max_top_k": 7,
        "allow_backbone_mismatch": True,
        "profiles": "users.db",
        "unknown_user": "refuse",
        "profile_prior": "people.jsonl",
        "profile_reader": "cuda:1",
        "learn_from_conversations": True,
        "profile_tokens": "env:SECRET",
    }
    config = read(**given)
    assert vars(config) == {"adapter": "/a", **given}
    assert type(config.max_beta) is float


def test_the_loaders_own_key_is_passed_over():
    assert read(_compile_key={"fork": 3}) == read()


def test_other_plugins_settings_beside_pad_are_left_alone():
    assert PADConfig.from_additional_config({"other": 1, "pad": {"adapter": "/a"}}) == read()


@pytest.mark.parametrize("additional", [None, {}, {"PAD": {}, "other": 1}])
def test_a_missing_entry_says_how_to_pass_one(additional):
    message = refusal(additional)
    assert "no 'pad' entry" in message
    assert """--additional-config '{"pad": {"adapter": "PATH"}}'""" in message


@pytest.mark.parametrize(
    "additional", ["text", ["pad"], {"pad": "/a"}, {"pad": None}, {"pad": {1: 2}}]
)
def test_anything_but_an_object_is_refused(additional):
    assert "JSON object" in refusal(additional)


def test_a_missing_adapter_says_how_to_name_it():
    message = refusal({"pad": {"max_beta": 3}})
    assert "names no adapter" in message
    assert "max_beta" in message
    assert "--additional-config" in message


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("max_betas", "max_beta"),
        ("Adapter", "adapter"),
        ("loadformat", "load_format"),
        ("_max_beta", "max_beta"),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_that_was_meant(key, meant):
    message = refusal({"pad": {"adapter": "/a", key: 1}})
    assert f"unknown key '{key}'" in message
    assert f"Did you mean '{meant}'?" in message
    assert "allow_backbone_mismatch" in message


@pytest.mark.parametrize("load_format", ["pad", "PAD", " Pad "])
def test_the_load_format_underneath_cannot_be_pad_itself(load_format):
    message = refusal({"pad": {"adapter": "/a", "load_format": load_format}})
    assert repr(load_format) in message
    assert "through itself" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("adapter", ""),
        ("adapter", "  "),
        ("adapter", 3),
        ("adapter", None),
        ("engine", "sharde"),
        ("engine", 1),
        ("engine", ["shared"]),
        ("backbone", 1),
        ("device", None),
        ("cache_gib", 0),
        ("cache_gib", float("inf")),
        ("pass_tokens", 0),
        ("pass_tokens", 15),
        ("candidates", "last"),
        ("chat_template", 0),
        ("ray_address", 1),
        ("ray_actors", 0),
        ("ray_resources", ["num_gpus"]),
        ("ray_resources", {"num_gpus": -1}),
        ("ray_deadline_s", 0),
        ("on_failure", "crash"),
        ("reasoning", "off"),
        ("unknown_user", "guess"),
        ("profiles", 5),
        ("profile_reader", True),
        ("profile_reader", "gpu"),
        ("profile_reader", "cpu "),
        ("learn_from_conversations", "yes"),
        ("load_format", ""),
        ("load_format", None),
        ("instructions", 1),
        ("fork_layer", -1),
        ("fork_layer", 1.0),
        ("max_instructions", 0),
        ("max_instruction_tokens", 0),
        ("max_beta", 0),
        ("max_beta", -1.0),
        ("max_beta", True),
        ("max_beta", "10"),
        ("max_beta", float("nan")),
        ("max_beta", float("inf")),
        ("max_beta", 10**400),
        ("max_top_k", 0),
        ("max_top_k", 10.0),
        ("max_top_k", True),
        ("max_top_k", "10"),
        ("allow_backbone_mismatch", 1),
        ("allow_backbone_mismatch", "true"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_accepted_and_the_way_out(name, value):
    message = refusal({"pad": {"adapter": "/a", name: value}})
    assert f"['{name}'] is " in message
    assert "accepted is" in message
    assert "Correct it" in message


def test_a_config_made_by_hand_is_checked_too():
    with pytest.raises(ValueError, match="max_top_k"):
        PADConfig(adapter="/a", max_top_k=0)


@pytest.mark.parametrize(
    "module", ["config", "params", "adapter.manifest", "adapter.backbone.weight_fingerprint"]
)
def test_the_front_ends_modules_import_neither_torch_nor_vllm(module):
    code = f"import sys, pad_vllm.{module}; sys.exit(bool({{'torch', 'vllm'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
