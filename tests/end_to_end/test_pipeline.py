"""Two stages of pipeline parallelism say what one says: all of PAD is in the last one."""

from __future__ import annotations

import pytest
import tiny
import torch
from engine_processes import V2_ENV, engines, pad
from mixed_requests import greedy, mixed_batch, tokens

pytestmark = pytest.mark.engine

LENGTHS = (5, 40)
TOKENS = 8
TWO = {"pipeline_parallel_size": 2}
FORKS = {
    "first layer of the stage": (
        "qwen2",
        2,
    ),  # lm_head is the embedding: the last stage has that, too
    "inside the stage": ("llama", 3),
    "windows": ("gemma3", 3),
    "heads": ("llama", 4),
    "heads, embedding": ("qwen2", 4),
}
"""Family, fork layer: the last of two stages has the upper half of the layers."""

IN_CI = "first layer of the stage"


COMPILED = {"enforce_eager": False}
"""V1's eager worker on a CPU makes no room for another stage's states, and plain vLLM 0.32 ends there too."""


def jobs(root, name, **llm):
    """On one stage, on two."""
    family, fork = FORKS[name]
    base = tiny.checkpoint(family, root / family)
    adapter = tiny.write_adapter(base, root / "adapter", fork_layer=fork, std=0.15, beta=1.0)
    prompts = [[3 + (11 * i + length) % 256 for i in range(length)] for length in LENGTHS]
    explained = greedy(prompts[0], TOKENS, {"pad_weights": "brief=1", "pad_explain": True})
    requests = [*mixed_batch(adapter, prompts, TOKENS), explained]
    rest = {"requests": requests, "ranks": True}
    one, two = pad(base, adapter, **llm), pad(base, adapter, **llm, **TWO)
    return [{"llm": one, **rest}, {"llm": two, **rest}]


def require_one_answer(one, two, requests):
    """The same tokens and outcomes; the first stage guides nothing and says nothing, and ranks of the last
    guide with the same bits.
    """
    assert tokens(two) == tokens(one)
    assert [comparable_pad_field(o) for o in two["outputs"]] == [
        comparable_pad_field(o) for o in one["outputs"]
    ]
    ranks = two["ranks"]
    below, (last, *others) = ranks[: len(ranks) // 2], ranks[len(ranks) // 2 :]
    assert [(rank["steps"], rank["speaks"]) for rank in below] == [([], False)] * len(below)
    assert not [name for rank in below for name in rank["buffers"] if "pad_" in name]
    assert last["speaks"]
    assert all(rank["steps"] == last["steps"] and not rank["speaks"] for rank in others)
    assert two["guided_rows"] == one["guided_rows"] >= TOKENS * guided(requests)


def require_one_reward(one, two):
    """Step by step."""
    (alone,), (_, last) = one["ranks"], two["ranks"]
    assert len(last["steps"]) == len(alone["steps"]) >= TOKENS
    error = max(
        float((torch.tensor(mine[0]) - torch.tensor(its[0])).abs().max())
        for mine, its in zip(last["steps"], alone["steps"], strict=True)
    )
    assert error < 1e-3
    print(f"\nlargest difference of rewards {error:.2e}")


def guided(requests):
    return sum("extra_args" in request["sampling"] for request in requests)


def comparable_pad_field(output):
    """The field `pad`, of rewards only that they are there: they are floats."""
    pad_field = output["pad"] and dict(output["pad"])
    if pad_field and "explained" in pad_field:
        (steps,) = pad_field["explained"]
        pad_field["explained"] = [{**step, "reward": step["reward"] is not None} for step in steps]
    return pad_field


@pytest.mark.parametrize(
    "runner", [V2_ENV, pytest.param({}, marks=pytest.mark.exhaustive)], ids=["v2", "v1"]
)
@pytest.mark.parametrize(
    "name", [IN_CI, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in FORKS if n != IN_CI)]
)
def test_two_stages_say_what_one_says(tmp_path, name, runner):
    asked = jobs(tmp_path, name, **({} if runner else COMPILED))
    one, two = engines(asked, runner)
    wanted = "v2" if runner else "v1"
    assert {rank["runner"] for result in (one, two) for rank in result["ranks"]} == {wanted}
    require_one_answer(one, two, asked[0]["requests"])
    require_one_reward(one, two)


@pytest.mark.exhaustive
@pytest.mark.parametrize("runner", [V2_ENV, {}], ids=["v2", "v1"])
def test_batches_that_are_in_two_stages_at_once_keep_their_rows_apart(tmp_path, runner):
    """Prompts are cut into pieces that follow each other through the stages."""
    asked = jobs(
        tmp_path, "inside the stage", **({} if runner else COMPILED), max_num_batched_tokens=32
    )
    one, two = engines(asked, runner)
    require_one_answer(one, two, asked[0]["requests"])
    alone, (_, last) = one["ranks"][0], two["ranks"]
    assert len(last["steps"]) > len(alone["steps"])


@pytest.mark.exhaustive
def test_two_ranks_in_each_of_two_stages_say_what_one_process_says(tmp_path):
    asked = jobs(tmp_path, IN_CI)
    asked[1]["llm"]["tensor_parallel_size"] = 2
    one, two = engines(asked, V2_ENV)
    assert len(two["ranks"]) == 4
    require_one_answer(one, two, asked[0]["requests"])
