"""Compiled: small models say what their twin says, and unguided rows what compiled plain vLLM says.

V2 as a GPU compiles it, in pieces and with padded batches, as far as a CPU can, and where a GPU is with its
graphs; V1 as vLLM compiles there.
"""

from __future__ import annotations

import pytest
import tiny
from engine_processes import ON_GPU, V2_ENV, engine, engines, pad, plain
from mixed_requests import KINDS, greedy, mixed_batch, tokens
from pytorch_twin import require_said
from small_family_runs import run_families

pytestmark = pytest.mark.engine

FORKS = {"llama": 2}


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """family -> (checkpoint, adapter, requests, result)."""
    root = tmp_path_factory.mktemp("compiled")
    return run_families(root, FORKS, lambda _: None, enforce_eager=False)


@pytest.mark.exhaustive  # compiled whole, on V1; below V2 is compiled as on a GPU
@pytest.mark.parametrize("family", FORKS)
def test_a_small_compiled_model_says_what_its_twin_says(families, family):
    base, adapter, requests, result = families[family]
    assert result["runner"] == "v1"
    require_said(family, base, adapter, requests, result)


@pytest.mark.exhaustive  # eager, test_exact.py and test_v2.py look at it; this one compiles once more
def test_unguided_requests_in_a_guided_batch_say_what_plain_compiled_vllm_says(families):
    base, _, requests, result = families["llama"]
    unguided = [
        greedy(request["prompt"], request["sampling"]["max_tokens"])
        for request in requests[KINDS - 1 :: KINDS]
    ]
    (alone,) = engines([{"llm": plain(base, enforce_eager=False), "requests": unguided}])
    assert tokens(result)[KINDS - 1 :: KINDS] == tokens(alone)


@pytest.fixture(scope="module")
def in_pieces(tmp_path_factory):
    """Checkpoint, adapter, requests, result: V2 as on a GPU, Gemma 3 forked at the third of six layers."""
    root = tmp_path_factory.mktemp("in_pieces")
    base = tiny.checkpoint("gemma3", root / "base")
    adapter = tiny.write_adapter(base, root / "adapter", fork_layer=3, std=0.15, beta=1.0)
    prompts = [[3 + (7 * i + length) % 256 for i in range(length)] for length in (3, 40)]
    requests = mixed_batch(adapter, prompts, 12)
    job = {"llm": pad(base, adapter, enforce_eager=False), "requests": requests, "record": True}
    cache = {"VLLM_CACHE_ROOT": str(root / "cache"), "VLLM_DISABLE_COMPILE_CACHE": "1"}
    return (
        base,
        adapter,
        requests,
        engine({**job, "gpu_like_compilation": True}, {**V2_ENV, **cache}),
    )


def test_split_at_both_attentions_and_padded_it_says_what_its_twin_says(in_pieces):
    base, adapter, requests, result = in_pieces
    assert result["runner"] == "v2"
    require_said("gemma3, v2 in pieces", base, adapter, requests, result)


def test_every_attention_of_both_streams_is_a_place_to_split_at(in_pieces):
    attentions = 6 + 3
    assert in_pieces[3]["pieces"] == 2 * attentions + 1


@pytest.mark.skipif(ON_GPU, reason="vLLM pads by itself, to the sizes of its graphs")
def test_steps_were_padded(in_pieces):
    assert len(set(in_pieces[3]["padded"]) - {0}) > 1
