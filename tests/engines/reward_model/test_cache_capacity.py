"""How long a text the reward model reads is known without it, and is what its cache then holds."""

from __future__ import annotations

import re

import pytest
import tiny
import torch

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.engines.reward_model.cache_capacity import BLOCK_SIZE, require_capacity
from pad_vllm.engines.reward_model.forked_decoder import ForkedDecoder

GIB = 2**30
POSITIONS = tiny.COMMON["max_position_embeddings"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "fork"), [("llama", 2), ("qwen3", 0), ("gemma3", 3)])
def test_the_computed_capacity_is_what_the_decoder_allocates(tmp_path, family, fork, dtype):
    base = tiny.checkpoint(family, tmp_path / family)
    adapter = load_adapter(
        tiny.write_adapter(base, tmp_path / "a", fork_layer=fork, std=0.1, rank=2)
    )
    gib = 0.0005
    decoder = ForkedDecoder(
        base, adapter, dtype=dtype, device=torch.device("cpu"), cache_bytes=int(gib * GIB)
    )
    holds = decoder.num_blocks * BLOCK_SIZE
    assert 0.9 * gib * GIB < sum(cache.nbytes for cache in decoder.kv_caches.values()) <= gib * GIB
    require_capacity(tiny.config(family), fork, dtype, gib, holds)
    with pytest.raises(ValueError, match=f"holds {holds}"):
        require_capacity(tiny.config(family), fork, dtype, gib, holds + 1)


def refusal(*given):
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the message is what is asserted
        require_capacity(tiny.config("llama"), 2, torch.float32, *given)
    return str(caught.value)


def test_positions_that_the_base_outgrows_are_refused_with_both_numbers_and_the_ways_out():
    message = refusal(1.0, POSITIONS + 1)
    assert f"max_model_len of {POSITIONS + 1}" in message
    assert f"{POSITIONS} positions" in message
    assert f"Start with --max-model-len {POSITIONS}, or" in message
    assert "a backbone with more positions" in message
    assert "cache_gib" not in message.partition("Start with")[2]
    require_capacity(tiny.config("llama"), 2, torch.float32, 1.0, POSITIONS)


def test_a_cache_that_the_base_outgrows_is_refused_with_a_size_that_is_enough():
    message = refusal(0.0002, POSITIONS)
    assert f"max_model_len of {POSITIONS}" in message
    assert "a KV cache of 0.0002 GiB (cache_gib), which holds 64" in message
    assert "Start with --max-model-len 64, or" in message
    assert "more positions" not in message
    enough = float(re.search(r"cache_gib ([\d.]+\d)", message)[1])
    require_capacity(tiny.config("llama"), 2, torch.float32, enough, POSITIONS)


def test_where_both_are_too_small_both_are_to_be_raised():
    message = refusal(0.0002, POSITIONS + 1)
    assert "Start with --max-model-len 64, or" in message
    assert re.search(r"cache_gib [\d.]+ .* and .* more positions", message)
