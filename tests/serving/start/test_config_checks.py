"""PAD's settings are parsed and checked once for each config object of a process."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from vllm.config import VllmConfig

from pad_vllm.config import COMPILE_CACHE_KEY, LOGITS_PROCESSOR, PADConfig
from pad_vllm.serving.start import config_checks


class Config(SimpleNamespace):
    """A stand-in that can be referenced weakly, as a VllmConfig can."""


def make(**settings):
    return Config(
        load_config=SimpleNamespace(load_format="pad"),
        model_config=SimpleNamespace(logits_processors=[LOGITS_PROCESSOR]),
        additional_config={"pad": {"adapter": "/adapter", **settings}},
    )


@pytest.fixture
def checked(monkeypatch):
    """The settings that were checked, in their order."""
    seen = []
    monkeypatch.setattr(config_checks, "require_supported", lambda _, pad: seen.append(pad))
    return seen


def test_a_config_is_checked_once_also_where_the_loader_adds_its_key(checked):
    config = make()
    settings = config_checks.pad_settings(config)
    config.additional_config["pad"][COMPILE_CACHE_KEY] = "a key"
    assert config_checks.pad_settings(config) is settings
    assert checked == [PADConfig(adapter="/adapter")]


def test_each_config_has_its_own_settings_for_as_long_as_it_lives(checked):
    before = len(config_checks._checked_settings)
    first, second = make(), make(max_top_k=5)
    assert config_checks.pad_settings(first).max_top_k == 100
    assert config_checks.pad_settings(second).max_top_k == 5
    assert len(config_checks._checked_settings) == before + 2
    del first, second
    gc.collect()
    assert len(config_checks._checked_settings) == before


def test_a_config_that_is_refused_is_refused_again(monkeypatch):
    config = make()
    config.load_config.load_format = "auto"
    for _ in range(2):
        with pytest.raises(ValueError, match="needs load format 'pad'"):
            config_checks.pad_settings(config)


def test_a_vllm_config_can_be_referenced_weakly():
    assert VllmConfig.__weakrefoffset__
