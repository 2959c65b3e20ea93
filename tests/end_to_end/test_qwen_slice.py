"""The first layers of Qwen2.5-Coder-0.5B, the third real family: `shared` and `resident` against their twin.

Its vocabulary of 151,936 rows has 271 that are no token, and its lm_head is no copy of the embedding.
Skipped where the model is not in the cache: no check depends on fetching it.
"""

from __future__ import annotations

import pytest
import tiny
from engine_processes import V2_ENV, engines, pad
from mixed_requests import PROMPTS, mixed_batch
from pytorch_twin import require_said

from pad_vllm.catalog.model_downloads import fetched_model_folder

pytestmark = [pytest.mark.engine, pytest.mark.exhaustive]

LAYERS, FORK = 4, 2
TOKENS = 6  # V2 runs under an interpreter, which works through the whole vocabulary


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """(Checkpoint of the first layers, an adapter with a trunk, requests)."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    whole = fetched_model_folder("qwen2.5-coder-0.5b")
    if whole is None:
        pytest.skip("qwen2.5-coder-0.5b is not in the cache: pad-vllm models qwen2.5-coder-0.5b")
    root = tmp_path_factory.mktemp("qwen")
    base = root / "base"
    config = AutoConfig.from_pretrained(whole)
    config.layer_types, config.num_hidden_layers = config.layer_types[:LAYERS], LAYERS
    model = AutoModelForCausalLM.from_pretrained(whole, config=config, dtype="float32")
    model.save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(whole)
    tokenizer.save_pretrained(base)
    assert model.config.vocab_size > len(tokenizer)
    adapter = tiny.write_adapter(base, root / "adapter", fork_layer=FORK, std=0.02)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS[:2]]
    return base, adapter, mixed_batch(adapter, prompts, TOKENS)


@pytest.mark.parametrize("env", [{}, V2_ENV], ids=["v1", "v2"])
@pytest.mark.parametrize("engine", ["shared", "resident"])
def test_a_slice_of_qwen_says_what_its_twin_says(qwen, engine, env):
    base, adapter, requests = qwen
    settings = {"engine": engine}
    if engine == "resident":
        settings |= {"backbone": str(base), "cache_gib": 0.25}
    job = {"llm": pad(base, adapter, settings), "requests": requests, "record": True}
    (result,) = engines([job], env)
    require_said(f"qwen2.5-coder-0.5b, {LAYERS} layers", base, adapter, requests, result)
