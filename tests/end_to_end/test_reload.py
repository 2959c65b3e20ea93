"""Weights that are lost, or read again, under a running engine: guidance is as before, or refused."""

from __future__ import annotations

import itertools
import shutil

import pytest
import tiny
from engine_processes import V2_ENV, engine, pad
from mixed_requests import mixed_batch

pytestmark = pytest.mark.engine

FORKS = {"llama": 2, "qwen2": 2}  # lm_head of its own; lm_head tied to the embedding
SOME = (("llama", "v2"), ("qwen2", "v1"))  # the others are exhaustive
PROMPTS = [[3 + (7 * i + length) % 256 for i in range(length)] for length in (5, 40)]


def cases():
    """Family and runner."""
    for family, runner in itertools.product(FORKS, ("v2", "v1")):
        marks = [] if (family, runner) in SOME else [pytest.mark.exhaustive]
        yield pytest.param((family, runner), id=f"{family} {runner}", marks=marks)


@pytest.fixture(scope="module", params=cases())
def again(request, tmp_path_factory):
    """One engine's answers at first, after what happened to its weights, and what was said to that."""
    family, runner = request.param
    root = tmp_path_factory.mktemp(family)
    base = tiny.checkpoint(family, root / "base")
    retrained = root / "retrained"
    shutil.copytree(base, retrained)
    tiny.model(family, seed=1).save_pretrained(retrained)
    fork = FORKS[family]
    adapter = tiny.write_adapter(base, root / "adapter", fork_layer=fork, std=0.15, beta=1.0)
    requests = mixed_batch(adapter, PROMPTS, 8)
    job = {
        # vLLM leaves it to its callers to forget what older weights put into the prefix cache.
        "llm": pad(base, adapter, enable_prefix_caching=False),
        "requests": requests,
        "calls": [
            ["reload_weights", {}],
            ["lose_weights", {}],
            ["reload_weights", {"weights_path": str(base)}],
            ["reload_weights", {"weights_path": str(retrained)}],
        ],
        "rounds": [requests] * 4,
    }
    result = engine(job, V2_ENV if runner == "v2" else None)
    assert result["runner"] == runner
    return result


def test_the_adapters_own_weights_are_reloaded_and_guide_as_before(again):
    assert again["said"][0] is None
    assert answers(again["rounds"][0]) == answers(again["outputs"])


def test_what_a_deep_sleep_loses_comes_back_with_the_buffers_and_the_weights(again):
    assert again["said"][1:3] == [None, None]
    assert answers(again["rounds"][1]) != answers(again["outputs"])
    assert answers(again["rounds"][2]) == answers(again["outputs"])


def test_other_weights_are_refused_and_the_engine_keeps_its_own(again):
    assert "set allow_backbone_mismatch to true" in again["said"][3]
    assert answers(again["rounds"][3]) == answers(again["outputs"])


@pytest.mark.exhaustive
def test_the_reward_model_of_resident_outlasts_the_bases_weights_or_the_reload_is_refused(tmp_path):
    """As after a level-2 sleep, from which that model is kept; and as if it had not been kept."""
    base = tiny.checkpoint("llama", tmp_path / "base")
    adapter = tiny.write_adapter(base, tmp_path / "adapter", fork_layer=2, std=0.15, beta=1.0)
    requests = mixed_batch(adapter, PROMPTS, 8)
    settings = {"engine": "resident", "backbone": str(base), "cache_gib": 0.1}
    result = engine(
        {
            "llm": pad(base, adapter, settings, enable_prefix_caching=False),
            "requests": requests,
            "calls": [
                ["lose_weights", {}],
                ["reload_weights", {}],
                ["lose_reward_model", {}],
                ["reload_weights", {}],
            ],
            "rounds": [requests] * 4,
        }
    )
    assert result["said"][:3] == [None] * 3
    assert "the reward model lost its weights" in result["said"][3]
    assert answers(result["rounds"][0]) != answers(result["outputs"])
    assert answers(result["rounds"][1]) == answers(result["outputs"])


def answers(outputs):
    return [one["token_ids"] for one in outputs]
