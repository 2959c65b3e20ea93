"""Weights of layers that vLLM keeps in the host's memory, heads only: the tokens and rewards of the twin."""

from __future__ import annotations

import pytest
import tiny
from engine_processes import engine, pad
from mixed_requests import mixed_batch
from pytorch_twin import require_said

pytestmark = pytest.mark.engine

PROMPTS = [[3 + (7 * i + length) % 256 for i in range(length)] for length in (5, 40)]


def test_heads_guide_a_base_whose_layers_are_offloaded(tmp_path):
    base = tiny.checkpoint("llama", tmp_path / "base")
    layers = tiny.config("llama").num_hidden_layers
    adapter = tiny.write_adapter(base, tmp_path / "adapter", fork_layer=layers, std=0.2, beta=1.0)
    requests = mixed_batch(adapter, PROMPTS, 8)
    job = {
        "llm": pad(base, adapter, cpu_offload_gb=1),
        "offload": True,
        "requests": requests,
        "record": True,
    }
    result = engine(job)
    assert result["offloaded"] > 4 * layers * 64 * 64
    require_said("offloaded", base, adapter, requests, result)
