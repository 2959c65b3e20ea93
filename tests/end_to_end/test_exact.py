"""In float32, greedy decoding through vLLM says what the PyTorch twin says; plain stays plain."""

from __future__ import annotations

import pytest
import tiny
import torch
from engine_processes import engines, pad, plain
from mixed_requests import KINDS, PROMPTS, greedy, mixed_batch, preferences, share_changed, tokens
from pytorch_twin import Twin

pytestmark = pytest.mark.engine

SOME = PROMPTS[::5]  # of them, so that the file takes a minute
TOKENS = 24


@pytest.fixture(scope="module")
def batch(adapter):
    return mixed_batch(adapter, SOME, TOKENS)


@pytest.fixture(scope="module")
def twin(smollm2, adapter):
    return Twin(smollm2, adapter)


@pytest.fixture(scope="module")
def zero(smollm2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero") / "adapter"
    return tiny.write_adapter(smollm2, folder, fork_layer=22, std=0.0)


@pytest.fixture(scope="module")
def unguided():
    return [greedy(prompt, TOKENS) for prompt in SOME]


@pytest.fixture(scope="module")
def eager(smollm2, adapter, zero, batch, unguided):
    """The mixed batch on PAD; the same prompts on plain vLLM and guided by a zero adapter."""
    guided = [greedy(prompt, TOKENS, preferences(zero)[2]) for prompt in SOME]
    results = engines(
        [
            {"llm": pad(smollm2, adapter), "requests": batch, "record": True},
            {"llm": plain(smollm2), "requests": unguided},
            {"llm": pad(smollm2, zero), "requests": guided, "record": True},
        ]
    )
    return dict(zip(("pad", "plain", "zero"), results, strict=True))


@pytest.fixture(scope="module")
def compiled(smollm2, adapter, batch, unguided, tmp_path_factory):
    results = engines(
        [
            {"llm": pad(smollm2, adapter, enforce_eager=False), "requests": batch, "record": True},
            {"llm": plain(smollm2, enforce_eager=False), "requests": unguided},
        ],
        {"VLLM_CACHE_ROOT": str(tmp_path_factory.mktemp("vllm_cache"))},
        timeout=1500,
    )
    return dict(zip(("pad", "plain"), results, strict=True))


# Compiling 30 layers takes minutes; test_compiled.py compiles small models among the engine tests.
@pytest.fixture(
    scope="module", params=["eager", pytest.param("compiled", marks=pytest.mark.exhaustive)]
)
def run(request):
    return request.getfixturevalue(request.param)


def compare(twin, batch, result):
    found = twin.compare(batch, result)
    print(
        f"\n{result['runner']}, start {result['start_s']:.1f} s, {result['run_s']:.1f} s: {found}"
    )
    return found


def test_greedy_tokens_and_rewards_are_the_twins(run, twin, batch):
    assert run["pad"]["runner"] == "v1"
    found = compare(twin, batch, run["pad"])
    assert found.differences == []
    assert found.sequences == len(SOME) * KINDS
    assert found.ties < 0.05 * found.sequences
    assert found.rewards > 0
    assert found.reward_error < 1e-3


def test_a_twin_with_other_heads_does_not_agree(eager, twin, batch, monkeypatch):
    monkeypatch.setattr(twin.persrm, "head_B", torch.nn.Parameter(-twin.persrm.head_B))
    found = twin.compare(batch, eager["pad"])
    assert len(found.differences) > 0.5 * found.sequences
    assert found.reward_error > 0.1


def test_guidance_changes_most_sequences(run):
    assert share_changed(run["pad"]) > 0.5


def test_unguided_requests_in_a_guided_batch_say_what_plain_vllm_says(run):
    assert tokens(run["pad"])[KINDS - 1 :: KINDS] == tokens(run["plain"])


def test_guidance_by_a_zero_adapter_says_what_plain_vllm_says(eager):
    largest = max(abs(r) for steps in eager["zero"]["steps"] for s in steps for r in s["reward"])
    print(f"\nlargest reward of the zero adapter: {largest}")
    assert tokens(eager["zero"]) == tokens(eager["plain"])
    assert largest < 1e-4
