"""vLLM's V2 model runner, on a CPU under Triton's interpreter: the twin's tokens, and V1's."""

from __future__ import annotations

import pytest
import tiny
from engine_processes import V2_ENV, engines, pad, plain
from mixed_requests import KINDS, PROMPTS, greedy, mixed_batch, tokens
from pytorch_twin import require_said

pytestmark = pytest.mark.engine

FAMILIES = ("llama", "gemma3")
LENGTHS = (5, 40)
PENALTY = 0.5


def pairs(everything, *, penalties=False):
    """name -> (V2's result, V1's); under "plain" V2's of the first model's prompts without PAD; under
    "penalised", where asked for, both of its first prompt with and without a penalty, said in the same batch.
    """
    first, (base, _, requests) = next(iter(everything.items()))
    more = penalised(requests[0]) if penalties else []
    jobs = [
        {
            "llm": pad(base, adapter),
            "requests": requests + more * (name == first),
            "record": True,
        }
        for name, (base, adapter, requests) in everything.items()
    ]
    unguided = [
        greedy(request["prompt"], request["sampling"]["max_tokens"])
        for request in requests[KINDS - 1 :: KINDS]
    ]
    *v2, plainly = engines([*jobs, {"llm": plain(base), "requests": unguided}], V2_ENV)
    results = dict(zip(everything, zip(v2, engines(jobs), strict=True), strict=True))
    count, both = len(requests), results[first]
    results["penalised"] = [part(one, slice(count, None)) for one in both]
    results[first] = [part(one, slice(count)) for one in both]
    return everything, {**results, "plain": plainly}


def part(result, which):
    """Of some of its requests."""
    return {**result, **{key: result[key][which] for key in ("outputs", "steps")}}


def penalised(request):
    """A request, and the same with a penalty on every token that was said."""
    few = {**request["sampling"], "max_tokens": 3}
    return [
        {**request, "sampling": {**few, "presence_penalty": penalty}} for penalty in (0, PENALTY)
    ]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two random models, 16 tokens."""
    root = tmp_path_factory.mktemp("v2")
    everything = {}
    for family in FAMILIES:
        base = tiny.checkpoint(family, root / family)
        folder = root / f"{family}_adapter"
        adapter = tiny.write_adapter(
            base, folder, fork_layer=3 if family == "gemma3" else 2, std=0.15, beta=1.0
        )
        prompts = [[3 + (11 * i + length) % 256 for i in range(length)] for length in LENGTHS]
        everything[family] = (base, adapter, mixed_batch(adapter, prompts, 16))
    return pairs(everything, penalties=True)


@pytest.fixture(scope="module")
def real(smollm2, adapter):
    """SmolLM2: 3 prompts, mixed preferences, 12 tokens: minutes under the interpreter."""
    return pairs({"smollm2": (smollm2, adapter, mixed_batch(adapter, PROMPTS[:3], 12))})


@pytest.fixture(scope="module")
def runs(request):
    """What a test of one model looks at: its requests, and what both runners made of them."""
    return request.getfixturevalue(request.param)


REAL = pytest.param("real", "smollm2", marks=pytest.mark.exhaustive)
each_model = pytest.mark.parametrize(
    ("runs", "name"), [*(("small", family) for family in FAMILIES), REAL], indirect=["runs"]
)


@each_model
def test_v2_says_what_the_twin_says(runs, name):
    everything, results = runs
    (base, adapter, requests), (result, _) = everything[name], results[name]
    assert result["runner"] == "v2"
    require_said(f"v2 {name}", base, adapter, requests, result)


@each_model
def test_both_runners_say_the_same(runs, name):
    v2, v1 = runs[1][name]
    assert (v2["runner"], v1["runner"]) == ("v2", "v1")
    assert tokens(v2) == tokens(v1)
    assert [len(steps) for steps in v2["steps"]] == [len(steps) for steps in v1["steps"]]


@pytest.mark.parametrize(("runs", "name"), [("small", FAMILIES[0]), REAL], indirect=["runs"])
def test_unguided_requests_say_what_plain_v2_says(runs, name):
    (guided, _), unguided = runs[1][name], runs[1]["plain"]
    assert tokens(guided)[KINDS - 1 :: KINDS] == tokens(unguided)


# Its random models hold what they just said among their candidates; a real one does not say "I I".
@pytest.mark.parametrize(("runs", "name"), [("small", FAMILIES[0])], indirect=["runs"])
def test_penalties_come_before_guidance_on_v2_and_after_it_on_v1(runs, name):
    for result, expected in zip(runs[1]["penalised"], (PENALTY, 0.0), strict=True):
        free, held = result["outputs"]
        first = free["token_ids"][0]
        assert held["token_ids"][0] == first
        seen = [
            dict(zip(steps[1]["ids"], steps[1]["z"], strict=True))[first]
            for steps in result["steps"]
        ]
        assert seen[0] - seen[1] == pytest.approx(expected, abs=1e-4)
