"""The plugin raises nothing in engines without PAD, and those with it end with its reason."""

from __future__ import annotations

import pytest

import pad_vllm
from pad_vllm import plugin
from pad_vllm.serving import registration
from pad_vllm.vllm_api import plugin_state


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr(plugin_state, "_outcomes", [])


def fail():
    raise RuntimeError("another vLLM")


def test_what_fails_in_it_is_the_reason_why_no_processor_is_found(monkeypatch, caplog):
    monkeypatch.setattr(registration, "register_with_vllm", fail)
    plugin.register()
    assert "PAD is off" in caplog.text
    with pytest.raises(ImportError, match="PAD is off in this process.*RuntimeError: another vLLM"):
        _ = pad_vllm.PADLogitsProcessor
    _ = pad_vllm.PersRM  # needs no vLLM
    monkeypatch.setattr(registration, "register_with_vllm", lambda: None)
    plugin.register()
    _ = pad_vllm.PADLogitsProcessor


@pytest.mark.parametrize(("allowed", "works"), [("other", False), ("", False), ("other,pad", True)])
def test_a_list_of_plugins_without_it_is_refused_by_name(monkeypatch, allowed, works):
    monkeypatch.setenv("VLLM_PLUGINS", allowed)
    if works:
        _ = pad_vllm.PADLogitsProcessor
        return
    with pytest.raises(ImportError, match=f"VLLM_PLUGINS={allowed} keeps.*add pad to it"):
        _ = pad_vllm.PADLogitsProcessor


def test_who_registers_by_hand_needs_no_list_of_plugins(monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    monkeypatch.setattr(registration, "register_with_vllm", lambda: None)
    plugin.register()
    _ = pad_vllm.PADLogitsProcessor
