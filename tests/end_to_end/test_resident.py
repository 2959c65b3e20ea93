"""A reward model of its own, beside the base in vLLM's worker: the tokens of the twin, and of `shared`."""

from __future__ import annotations

import pytest
from engine_processes import V2_ENV, engines, pad
from mixed_requests import KINDS, PROMPTS, mixed_batch, share_changed, tokens
from pytorch_twin import Twin, require_said
from small_family_runs import run_families

pytestmark = pytest.mark.engine

RESIDENT = {"engine": "resident", "cache_gib": 0.25}
TOKENS = 48
FAMILIES = {"llama": 2, "mistral": 3, "qwen2": 1, "qwen3": 0, "gemma3": 3}


def settings(base, **more):
    return {**RESIDENT, "backbone": str(base), **more}


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """family -> (checkpoint, adapter, requests, result): the base is its own reward model's backbone."""
    return run_families(tmp_path_factory.mktemp("resident"), FAMILIES, settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_model_of_each_family_says_what_its_twin_says(families, family):
    base, adapter, requests, result = families[family]
    require_said(family, base, adapter, requests, result)


def sampled(n, seed, extra_args):
    # A prompt short enough for one piece: vLLM on a CPU cannot seed one that it reads in several.
    sampling = {"temperature": 1.0, "max_tokens": 16, "n": n, "seed": seed, "ignore_eos": True}
    return {"prompt": list(range(5, 15)), "sampling": {**sampling, "extra_args": extra_args}}


def test_prompts_read_in_pieces_and_many_answers_to_one_change_nothing(families):
    base, adapter, requests, whole = families["llama"]
    guided = requests[0]["sampling"]["extra_args"]
    job = {
        "llm": pad(base, adapter, settings(base, pass_tokens=24), max_num_batched_tokens=40),
        "requests": requests,
        "rounds": [[sampled(3, 7, guided)], *([sampled(1, 7 + i, guided)] for i in range(3))],
    }
    (result,) = engines([job])
    assert tokens(result) == tokens(whole)
    (together,), *alone = result["rounds"]
    said = [choice["token_ids"] for choice in together["choices"]]
    assert said == [one["token_ids"] for (one,) in alone]
    assert len({tuple(one) for one in said}) == 3


@pytest.mark.exhaustive
def test_with_the_same_backbone_it_says_what_the_twin_says_and_so_does_shared(smollm2, adapter):
    # test_exact.py holds `shared` against the same twin, in the same requests.
    requests = mixed_batch(adapter, PROMPTS, TOKENS)
    job = {"llm": pad(smollm2, adapter, settings(smollm2)), "requests": requests, "record": True}
    (result,) = engines([job])
    found = Twin(smollm2, adapter).compare(requests, result)
    print(f"\nresident {result['run_s']:.1f} s: {found}")
    assert found.differences == []
    assert found.sequences == len(PROMPTS) * KINDS
    assert found.ties < 0.05 * found.sequences
    assert found.reward_error < 1e-3


def test_on_the_v2_runner_it_says_what_the_twin_says(families):
    base, adapter, requests, _ = families["llama"]
    (result,) = engines(
        [{"llm": pad(base, adapter, settings(base)), "requests": requests, "record": True}], V2_ENV
    )
    found = Twin(base, adapter).compare(requests, result)
    print(f"\n{found}")
    assert result["runner"] == "v2"
    assert found.differences == []
    assert found.reward_error < 1e-3
    assert share_changed(result) > 0.5
