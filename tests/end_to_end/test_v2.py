"""vLLM's V2 model runner, on a CPU under Triton's interpreter: the twin's tokens, and V1's."""

from __future__ import annotations

import pytest
import tiny
from cases import KINDS, PROMPTS, greedy, mixed_batch, share_changed, tokens
from harness import V2_ENV, engines, pad, plain
from twin import Twin

pytestmark = pytest.mark.engine

FAMILIES = ("llama", "gemma3")
LENGTHS = (5, 40, 19)


@pytest.fixture(scope="module")
def real(smollm2, adapter):
    """SmolLM2: 3 prompts, mixed preferences, 12 tokens."""
    return smollm2, adapter, mixed_batch(adapter, PROMPTS[:3], 12)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two random models: more tokens than the interpreter allows the real one."""
    root = tmp_path_factory.mktemp("v2")
    made = {}
    for family in FAMILIES:
        base = tiny.checkpoint(family, root / family)
        folder = root / f"{family}_adapter"
        adapter = tiny.write_adapter(
            base, folder, fork_layer=3 if family == "gemma3" else 2, std=0.15, beta=1.0
        )
        prompts = [[3 + (11 * i + length) % 256 for i in range(length)] for length in LENGTHS]
        made[family] = (base, adapter, mixed_batch(adapter, prompts, 32))
    return made


@pytest.fixture(scope="module")
def runs(real, small):
    """name -> (V2's result, V1's), plain vLLM under "plain"."""
    everything = {"smollm2": real, **small}
    jobs = [
        {"llm": pad(base, adapter), "requests": requests, "record": True}
        for base, adapter, requests in everything.values()
    ]
    unguided = [greedy(prompt, 12) for prompt in PROMPTS[:3]]
    jobs.append({"llm": plain(real[0]), "requests": unguided})
    names = [*everything, "plain"]
    return dict(zip(names, zip(engines(jobs, V2_ENV), engines(jobs), strict=True), strict=True))


@pytest.mark.parametrize("name", ["smollm2", *FAMILIES])
def test_v2_says_what_the_twin_says(runs, real, small, name):
    base, adapter, requests = {"smollm2": real, **small}[name]
    result, _ = runs[name]
    assert result["runner"] == "v2"
    found = Twin(base, adapter).compare(requests, result)
    print(f"\nv2 {name}: start {result['start_s']:.1f} s, {result['run_s']:.1f} s: {found}")
    assert found.differences == []
    assert found.ties <= 1
    assert found.rewards > 0
    assert found.reward_error < 1e-3
    assert share_changed(result) > 0.5


@pytest.mark.parametrize("name", ["smollm2", *FAMILIES])
def test_both_runners_say_the_same(runs, name):
    v2, v1 = runs[name]
    assert (v2["runner"], v1["runner"]) == ("v2", "v1")
    assert tokens(v2) == tokens(v1)
    assert [len(steps) for steps in v2["steps"]] == [len(steps) for steps in v1["steps"]]


def test_unguided_requests_say_what_plain_v2_says(runs):
    (guided, _), (unguided, _) = runs["smollm2"], runs["plain"]
    assert tokens(guided)[KINDS - 1 :: KINDS] == tokens(unguided)
