"""KV blocks of one engine in another, by vLLM's example of a connector: the answers are the twin's."""

from __future__ import annotations

import pytest
import tiny
from engine_processes import V2_ENV, engines, pad, plain
from mixed_requests import greedy, mixed_batch, tokens
from pytorch_twin import Twin, require_said

pytestmark = pytest.mark.engine

BLOCK = 32
LENGTHS = (40, 70)
FEW = 8


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Checkpoint, adapter with heads only, prompts of more than a block."""
    root = tmp_path_factory.mktemp("kv_connectors")
    base = tiny.checkpoint("llama", root / "base")
    adapter = tiny.write_adapter(base, root / "adapter", fork_layer=4, std=0.15, beta=1.0)
    return (
        base,
        adapter,
        [[3 + (7 * i + length) % 256 for i in range(length)] for length in LENGTHS],
    )


def connected(folder, role="kv_both", **more):
    """LLM(...) arguments of an engine that shares KV blocks through a folder."""
    settings = {
        "kv_connector": "ExampleConnector",
        "kv_role": role,
        "kv_connector_extra_config": {"shared_storage_path": str(folder)},
    }
    return {"block_size": BLOCK, "kv_transfer_config": {**settings, **more}}


def require_loaded(result, requests):
    """An engine that has seen no prompt before had all whole blocks of each; every answer was guided."""
    assert [output["cached_tokens"] for output in result["outputs"]] == [
        (len(one["prompt"]) - 1) // BLOCK * BLOCK for one in requests
    ]
    require_guided(result, requests)


def require_guided(result, requests):
    for request, output in zip(requests, result["outputs"], strict=True):
        length = request["sampling"]["max_tokens"]
        guided = {"guided_tokens": length, "unguided_tokens": 0, "stopped": False}
        assert output["pad"] == (guided if "extra_args" in request["sampling"] else None)


@pytest.mark.parametrize("runner", ["v2", pytest.param("v1", marks=pytest.mark.exhaustive)])
def test_what_one_instance_prefilled_another_decodes_as_its_twin(case, tmp_path, runner):
    base, adapter, prompts = case
    first, whole = (mixed_batch(adapter, prompts, length) for length in (1, FEW))
    prefill, decode = engines(
        [
            {"llm": pad(base, adapter, **connected(tmp_path, "kv_producer")), "requests": first},
            {
                "llm": pad(base, adapter, **connected(tmp_path, "kv_consumer")),
                "requests": whole,
                "record": True,
            },
        ],
        V2_ENV if runner == "v2" else None,
    )
    assert {prefill["runner"], decode["runner"]} == {runner}
    require_guided(prefill, first)
    require_loaded(decode, whole)
    assert [said[:1] for said in tokens(decode)] == tokens(prefill)
    require_said(f"loaded KV, {runner}", base, adapter, whole, decode)


@pytest.mark.exhaustive
@pytest.mark.parametrize("runner", [V2_ENV, {}], ids=["v2", "v1"])
def test_blocks_of_plain_vllm_are_the_same(case, tmp_path, runner):
    base, adapter, prompts = case
    requests = mixed_batch(adapter, prompts, FEW)
    beside = {"engine": "resident", "backbone": str(base), "cache_gib": 0.1}
    store = {"llm": plain(base, **connected(tmp_path)), "requests": [greedy(p, 1) for p in prompts]}
    _, shared, resident = engines(
        [
            store,
            *(
                {
                    "llm": pad(base, adapter, settings, **connected(tmp_path)),
                    "requests": requests,
                    "record": True,
                }
                for settings in ({}, beside)
            ),
        ],
        runner,
    )
    for result in (shared, resident):
        require_loaded(result, requests)
        require_said("blocks of plain vLLM", base, adapter, requests, result)


@pytest.mark.exhaustive
def test_blocks_that_are_lost_while_they_load_are_computed(case, tmp_path):
    """On V1: V2 of vLLM 0.32 goes on behind the lost blocks, with PAD or without."""
    base, adapter, prompts = case
    requests = mixed_batch(adapter, prompts, FEW)
    failing = connected(
        tmp_path,
        kv_connector="FailingConnector",
        kv_connector_module_path="failing_kv_connector",
        kv_load_failure_policy="recompute",
    )
    _, result = engines(
        [
            {
                "llm": plain(base, **connected(tmp_path)),
                "requests": [greedy(p, 1) for p in prompts],
            },
            {"llm": pad(base, adapter, **failing), "requests": requests},
        ]
    )
    require_guided(result, requests)
    guided = sum("extra_args" in one["sampling"] for one in requests)
    assert result["guided_rows"] > FEW * guided  # those of a step that vLLM discards too
    found = Twin(base, adapter).compare(requests, result)
    assert (found.differences, found.tokens) == ([], FEW * len(requests))
