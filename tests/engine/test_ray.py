"""The reward model in Ray actors: the tokens of `resident`, and no request lost when an actor is."""

from __future__ import annotations

import json

import pytest
import tiny
from cases import greedy, mixed_batch, preferences, tokens
from harness import HERE, EngineFailed, engine_slot, engines, pad, run, tail
from twin import Twin

pytestmark = pytest.mark.engine
pytest.importorskip("ray")

TOKENS = 40


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


def test_two_actors_share_a_mixed_batch_and_say_what_the_twin_says(pair):
    base, adapter = pair
    prompts = [[3 + (7 * i + length) % 256 for i in range(length)] for length in (3, 40, 17, 70)]
    requests = mixed_batch(adapter, prompts, 24)
    jobs = [
        {"llm": pad(base, adapter, settings(base, **more)), "requests": requests, "record": True}
        for more in ({"ray_actors": 2}, {"engine": "resident"})
    ]
    remote, local = engines(jobs)
    found = Twin(base, adapter).compare(requests, remote)
    print(f"\n{found}")
    assert found.differences == []
    assert found.reward_error < 1e-3
    assert tokens(remote) == tokens(local)


def trouble(tmp_path, pair, kind, **more):
    base, adapter = pair
    kinds = preferences(adapter)
    requests = [greedy([5 + n] * (4 + 3 * n), TOKENS, kinds[n % 4]) for n in range(4)]
    requests.append(greedy([9] * 12, TOKENS))
    job = {
        "llm": pad(base, adapter, settings(base, **more)),
        "requests": requests,
        "trouble": kind,
    }
    given, made, log = (tmp_path / name for name in ("job.json", "result.json", "log"))
    given.write_text(json.dumps(job), "utf-8")
    with engine_slot():
        code = run([HERE / "ray_trouble.py", given, made], log, None, 400)
    if code != 0 or not made.exists():
        raise EngineFailed(f"exit status {code}\n{tail(log)}")
    return json.loads(made.read_text("utf-8"))


@pytest.mark.parametrize("kind", ["kill", "stall"])
def test_with_a_dead_or_stalled_actor_every_request_ends_and_guidance_returns(tmp_path, pair, kind):
    result = trouble(tmp_path, pair, kind, ray_deadline_s=1.0)
    print(
        f"\n{kind}: {result['failures']} failures, {result['unguided']} rows unguided, guided again after "
        f"{result['back_s']:.1f} s"
    )
    calm, troubled = result["calm"], result["troubled"]
    assert [len(one) for one in troubled["said"]] == [TOKENS] * 5
    assert troubled["said"][4] == calm["said"][4]  # the unguided one
    assert [a[:10] for a in troubled["said"]] == [b[:10] for b in calm["said"]]
    assert troubled["said"] != calm["said"]
    assert result["failures"] >= 1
    assert result["unguided"] >= 4
    assert result["back_s"] is not None


def test_where_on_failure_says_stop_the_guided_rows_end_there(tmp_path, pair):
    result = trouble(tmp_path, pair, "kill", ray_deadline_s=1.0, on_failure="stop")
    said = result["troubled"]["said"]
    eos = tiny.COMMON["eos_token_id"]
    for answer, calm in zip(said[:4], result["calm"]["said"][:4], strict=True):
        assert answer[:10] == calm[:10]
        assert eos in answer[10:]
    assert said[4] == result["calm"]["said"][4]
