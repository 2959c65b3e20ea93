"""Two ranks of tensor parallelism say what one says, and guide with the same bits."""

from __future__ import annotations

import pytest
import tiny
import torch
from engine_processes import ON_GPU, V2_ENV, EngineFailed, engine, engines, pad
from mixed_requests import mixed_batch, tokens

pytestmark = pytest.mark.engine

FORKS = {"llama": 2, "mistral": 3, "qwen2": 1, "qwen3": 0, "gemma3": 3}
LENGTHS = (5, 40)
TOKENS = 12
TWO = {"tensor_parallel_size": 2}


def made(root, family, fork):
    """Checkpoint, adapter, a mixed batch."""
    write = tiny.other_checkpoint if family in tiny.OTHERS else tiny.checkpoint
    base = write(family, root / family)
    adapter = tiny.write_adapter(
        base, root / f"{family}_adapter", fork_layer=fork, std=0.15, beta=1.0
    )
    prompts = [[3 + (11 * i + length) % 256 for i in range(length)] for length in LENGTHS]
    return base, adapter, mixed_batch(adapter, prompts, TOKENS)


def jobs(base, adapter, requests, settings=None):
    """On one rank, on two."""
    return [
        {"llm": pad(base, adapter, settings), "requests": requests, "ranks": True},
        {"llm": pad(base, adapter, settings, **TWO), "requests": requests, "ranks": True},
    ]


def require_one_answer(one, two, requests):
    """The same tokens, the same bits on both ranks, each row counted once."""
    assert tokens(two) == tokens(one)
    assert [o["pad"] for o in two["outputs"]] == [o["pad"] for o in one["outputs"]]
    (alone,), (first, second) = one["ranks"], two["ranks"]
    assert len(first["steps"]) == len(alone["steps"]) >= TOKENS
    assert second["steps"] == first["steps"]
    assert (first["speaks"], second["speaks"]) == (True, False)
    error = max(
        float((torch.tensor(mine[0]) - torch.tensor(its[0])).abs().max())
        for mine, its in zip(first["steps"], alone["steps"], strict=True)
    )
    assert error < 1e-3
    guided = [request for request in requests if "extra_args" in request["sampling"]]
    assert two["guided_rows"] == one["guided_rows"] == TOKENS * len(guided)
    print(f"\n{len(requests)} requests, largest difference of rewards {error:.2e}")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model whose two ranks share one KV head, a fork of three layers."""
    return made(tmp_path_factory.mktemp("tensor_parallel"), "qwen2", FORKS["qwen2"])


@pytest.fixture(scope="module")
def v2(small):
    return engines(jobs(*small), V2_ENV)


def test_two_ranks_say_what_one_says_on_v2(v2, small):
    assert {rank["runner"] for result in v2 for rank in result["ranks"]} == {"v2"}
    require_one_answer(*v2, small[2])


def test_each_rank_holds_its_share_of_the_lora(v2):
    (whole,), shares = (result["ranks"] for result in v2)
    layer = "model.layers.3.{}.pad_{}_t"
    for share in shares:
        q, down = (
            [
                [rank["buffers"][layer.format(name, letter)] for letter in "AB"]
                for rank in (whole, share)
            ]
            for name in ("self_attn.qkv_proj", "mlp.down_proj")
        )
        assert q[0][0] == q[1][0]  # A is whole where outputs are split
        assert q[1][1][1] < q[0][1][1]
        assert down[0][0][0] == 2 * down[1][0][0]
        assert down[0][1] == down[1][1]


@pytest.fixture(scope="module")
def v1(small, tmp_path_factory):
    """name -> (results on one rank and on two, requests): forked, heads only, a reward model beside."""
    base, adapter, requests = small
    heads = made(tmp_path_factory.mktemp("heads"), "llama", tiny.COMMON["num_hidden_layers"])
    beside = {"engine": "resident", "backbone": str(base), "cache_gib": 0.1}
    asked = {
        "forked": jobs(*small),
        "heads": jobs(*heads),
        "resident": jobs(base, adapter, requests, beside),
    }
    results = iter(engines([job for both in asked.values() for job in both]))
    return {
        name: ([next(results), next(results)], both[0]["requests"]) for name, both in asked.items()
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["forked", "heads", "resident"])
def test_two_ranks_say_what_one_says_on_v1(v1, name):
    results, requests = v1[name]
    assert {rank["runner"] for result in results for rank in result["ranks"]} == {"v1"}
    require_one_answer(*results, requests)


@pytest.mark.exhaustive
@pytest.mark.skipif(ON_GPU, reason="each rank needs a device")
def test_actors_of_ray_on_one_node_and_on_two_say_what_one_process_says(small):
    pytest.importorskip("ray")
    one, two = jobs(*small)
    ray = {"distributed_executor_backend": "ray"}
    alone, actor, actors = engines(
        [
            one,
            {**one, "llm": {**one["llm"], **ray}, "ray_nodes": [1]},
            {**two, "llm": {**two["llm"], **ray}, "ray_nodes": [1, 1]},
        ]
    )
    assert tokens(actor) == tokens(alone)
    assert [o["pad"] for o in actor["outputs"]] == [o["pad"] for o in alone["outputs"]]
    require_one_answer(alone, actors, small[2])


@pytest.mark.exhaustive
def test_what_no_rank_can_serve_ends_them_all(tmp_path):
    base = tiny.other_checkpoint("granite", tmp_path / "granite")
    layers = tiny.OTHERS["granite"]["num_hidden_layers"]
    adapter = tiny.write_adapter(base, tmp_path / "adapter", fork_layer=layers, std=0.1)
    with pytest.raises(EngineFailed, match="GraniteForCausalLM are not lm_head times the hidden"):
        engine({"llm": pad(base, adapter, **TWO), "requests": []}, timeout=200)


@pytest.mark.exhaustive
def test_two_ranks_of_a_mixture_of_experts_say_what_one_says(tmp_path):
    case = made(tmp_path, "qwen3_moe", tiny.COMMON["num_hidden_layers"])
    require_one_answer(*engines(jobs(*case)), case[2])


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", [family for family in FORKS if family != "qwen2"])
@pytest.mark.parametrize("runner", [V2_ENV, {}], ids=["v2", "v1"])
def test_each_family_says_on_two_ranks_what_it_says_on_one(tmp_path, family, runner):
    case = made(tmp_path, family, FORKS[family])
    require_one_answer(*engines(jobs(*case), runner), case[2])
