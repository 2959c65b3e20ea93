"""Compiled plain vLLM and PAD share one cache folder without taking each other's code."""

from __future__ import annotations

import pytest
import tiny
from engine_processes import engine, engines, pad, plain
from mixed_requests import greedy, preferences, tokens

pytestmark = [pytest.mark.engine, pytest.mark.exhaustive]  # five compilations, a process each


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.checkpoint("llama", tmp_path_factory.mktemp("base") / "llama")


FORKS = (2, 3)


def compiled(cache):
    """How many compiled models the folder holds."""
    return len(list(cache.glob("torch_compile_cache/torch_aot_compile/*/rank_0_0/model")))


def test_plain_and_pad_in_turn_on_one_cache_say_what_they_say_eager(base, tmp_path):
    cache = tmp_path / "vllm_cache"
    prompts = [[3 + (13 * i + length) % 256 for i in range(length)] for length in (4, 30)]
    unguided = [greedy(prompt, 16) for prompt in prompts]

    def adapter(fork, name):
        return tiny.write_adapter(base, tmp_path / name, fork_layer=fork, std=0.15, beta=1.0)

    def run(llm, requests):
        # A process each: within one, compiled code is also kept in memory.
        job = {"llm": {**llm, "enforce_eager": False}, "requests": requests}
        return tokens(engine(job, {"VLLM_CACHE_ROOT": str(cache)}))

    def run_pad(fork):
        # One folder for all: vLLM's own key then sees the same arguments for another adapter.
        folder = adapter(fork, "adapter")
        return run(pad(base, folder), [greedy(p, 16, preferences(folder)[0]) for p in prompts])

    first = run(plain(base), unguided)
    assert compiled(cache) == 1
    forked = {fork: run_pad(fork) for fork in FORKS}
    assert run(plain(base), unguided) == first
    assert run_pad(FORKS[0]) == forked[FORKS[0]]
    # vLLM 0.32 writes these on a CPU and cannot load them, so that there wrong tokens alone would
    # not show that two models share one.
    assert compiled(cache) == 1 + len(FORKS)

    folders = [adapter(fork, f"eager_{fork}") for fork in FORKS]
    jobs = [
        {
            "llm": pad(base, folder),
            "requests": [greedy(p, 16, preferences(folder)[0]) for p in prompts],
        }
        for folder in folders
    ]
    assert [tokens(result) for result in engines(jobs)] == list(forked.values())
    assert len({str(said) for said in (first, *forked.values())}) == 3
