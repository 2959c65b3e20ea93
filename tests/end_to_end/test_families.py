"""Every served family against its twin: small random models, and Gemma-3-270m itself."""

from __future__ import annotations

import pytest
import tiny
from engine_processes import engines, pad
from mixed_requests import PROMPTS, mixed_batch
from pytorch_twin import require_said
from small_family_runs import run_families

pytestmark = pytest.mark.engine

FORKS = {  # gemma3 at its pattern's boundary; qwen3 below its first layer: everything twice
    "llama": 2,
    "mistral": 3,
    "qwen2": 1,
    "qwen3": 0,
    "gemma3": 3,
    "gemma3_sliding": 1,
    "gemma3_full": 2,
}


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """family -> (checkpoint, adapter, requests, result)."""
    return run_families(tmp_path_factory.mktemp("families"), FORKS, lambda _: None)


@pytest.mark.parametrize("family", FORKS)
def test_a_small_model_of_each_family_says_what_its_twin_says(families, family):
    base, adapter, requests, result = families[family]
    require_said(family, base, adapter, requests, result)


@pytest.mark.exhaustive
def test_gemma_3_270m_says_what_its_twin_says(gemma3, tmp_path):
    adapter = tiny.write_adapter(gemma3, tmp_path / "adapter", fork_layer=12, std=0.02)
    bos = 2  # its converted tokenizer adds none
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gemma3)
    prompts = [
        [bos, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in PROMPTS[:4]
    ]
    requests = mixed_batch(adapter, prompts, 16)
    (result,) = engines([{"llm": pad(gemma3, adapter), "requests": requests, "record": True}])
    require_said("gemma-3-270m", gemma3, adapter, requests, result)
