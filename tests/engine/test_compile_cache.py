"""Compiled plain vLLM and PAD share one cache folder without taking each other's code."""

from __future__ import annotations

import pytest
import tiny
from cases import greedy, preferences, tokens
from harness import engine, pad, plain

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.checkpoint("llama", tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """Fork layer -> adapter."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        fork: tiny.write_adapter(base, root / str(fork), fork_layer=fork, std=0.15, beta=1.0)
        for fork in (2, 3)
    }


def test_plain_and_pad_in_turn_on_one_cache_say_what_they_say_eager(base, adapters, tmp_path):
    cache = tmp_path / "vllm_cache"
    prompts = [[3 + (13 * i + length) % 256 for i in range(length)] for length in (4, 30)]
    unguided = [greedy(prompt, 16) for prompt in prompts]

    def guided(fork):
        return [greedy(prompt, 16, preferences(adapters[fork])[0]) for prompt in prompts]

    def run(llm, requests, *, eager=False):
        # A process each: within one, compiled code is also kept in memory.
        llm = {**llm, "enforce_eager": eager}
        job = {"llm": llm, "requests": requests}
        return tokens(engine(job, {"VLLM_CACHE_ROOT": str(cache)}))

    first = run(plain(base), unguided)
    assert any(file.is_file() for file in cache.rglob("*")), "nothing was cached to begin with"
    forked = {fork: run(pad(base, adapters[fork]), guided(fork)) for fork in adapters}
    assert run(plain(base), unguided) == first
    assert run(pad(base, adapters[2]), guided(2)) == forked[2]

    for fork, said in forked.items():
        assert said == run(pad(base, adapters[fork]), guided(fork), eager=True)
    assert len({str(said) for said in (first, *forked.values())}) == 3
