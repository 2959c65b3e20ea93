"""A reward actor checks the adapter on its own host before it loads it."""

from __future__ import annotations

import pytest
import tiny

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.engines.reward_actor_process import PersRMActor

DIGEST = "0" * 64


def test_an_actor_whose_host_has_another_adapter_refuses_to_start_and_names_both(tmp_path):
    base = tiny.checkpoint("llama", tmp_path / "base")
    folder = tiny.write_adapter(base, tmp_path / "adapter", fork_layer=2, std=0.1)
    own = load_adapter(folder).digest
    settings = {"adapter": str(folder), "backbone": str(base), "cache_gib": 0.01, "device": "cpu"}
    assert PersRMActor(settings, own, "float32").ready()["steps"] == 0
    with pytest.raises(ValueError, match=f"{own}.*{DIGEST}.*Copy") as refusal:
        PersRMActor(settings, DIGEST, "float32")
    assert str(folder) in str(refusal.value)
