"""The reward model in Ray actors: the tokens of `resident`, and no request lost when an actor is."""

from __future__ import annotations

import pytest
import tiny
from engine_processes import V2_ENV, engine, outcome, pad
from mixed_requests import greedy, mixed_batch, preferences
from pytorch_twin import Twin

pytestmark = pytest.mark.engine
pytest.importorskip("ray")

TOKENS = 40
FEW = 16


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    base = tiny.checkpoint("llama", folder / "base")
    return base, tiny.write_adapter(base, folder / "adapter", fork_layer=2, std=0.15, beta=1.0)


def settings(base, **more):
    return {
        "engine": "ray",
        "backbone": str(base),
        "cache_gib": 0.1,
        "ray_deadline_s": 30.0,
        "ray_resources": {"num_cpus": 0.5},
        **more,
    }


@pytest.mark.parametrize("runner", ["v2", pytest.param("v1", marks=pytest.mark.exhaustive)])
def test_two_actors_share_a_mixed_batch_and_say_what_the_twin_says(pair, runner):
    base, adapter = pair
    prompts = [[3 + (7 * i + length) % 256 for i in range(length)] for length in (3, 40, 17, 70)]
    requests = mixed_batch(adapter, prompts, FEW)
    llm = pad(base, adapter, settings(base, ray_actors=2))
    job = {"llm": llm, "requests": requests, "record": True}
    result = engine(job, V2_ENV if runner == "v2" else None)
    found = Twin(base, adapter).compare(requests, result)
    print(f"\n{found}")
    assert result["runner"] == runner
    assert found.differences == []
    assert found.reward_error < 1e-3
    # Before each forward but the first the actors are sent what was said last.
    guided = sum("extra_args" in one["sampling"] for one in requests)
    assert result["early"].count(guided) >= FEW - 1


def trouble(pair, *kinds, wait=True, **more):
    base, adapter = pair
    asked = preferences(adapter)
    requests = [greedy([5 + n] * (4 + 3 * n), TOKENS, asked[n % 4]) for n in range(4)]
    requests.append(greedy([9] * 12, TOKENS))
    if not wait:
        for one in requests:
            one["sampling"]["ignore_eos"] = False
    job = {
        "llm": pad(base, adapter, settings(base, ray_deadline_s=1.0, **more)),
        "requests": requests,
        "troubles": kinds,
        "wait": wait,
    }
    return outcome("ray_actor_failures.py", job, timeout=400)


@pytest.mark.exhaustive  # test_ray_engine.py has failing actors without processes
def test_when_an_actor_dies_or_stalls_every_request_ends_and_guidance_returns(pair):
    result = trouble(pair, "stall", "kill")
    calm = result["calm"]["said"]
    for kind in ("stall", "kill"):
        found = result[kind]
        print(
            f"\n{kind}: {found['failures']} failures, {found['unguided']} rows unguided, guided "
            f"again after {found['back_s']:.1f} s"
        )
        assert [len(one) for one in found["said"]] == [TOKENS] * 5
        assert found["said"][4] == calm[4]  # the unguided one
        assert [a[:10] for a in found["said"]] == [b[:10] for b in calm]
        assert found["said"] != calm
        assert found["failures"] >= 1
        assert found["unguided"] >= 4
        assert found["back_s"] is not None


@pytest.mark.exhaustive  # who stops where is the processor's affair, test_logits_processor.py
def test_where_on_failure_says_stop_the_guided_rows_end_there(pair):
    result = trouble(pair, "kill", wait=False, on_failure="stop")
    calm, found = result["calm"], result["kill"]
    assert found["said"][4] == calm["said"][4]
    for answer, whole, why in zip(found["said"][:4], calm["said"][:4], found["ends"], strict=False):
        assert answer[:10] == whole[:10]
        assert len(answer) < TOKENS
        assert why == "stop"
