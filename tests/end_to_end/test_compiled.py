"""Compiled: small models say what their twin says, and unguided rows what compiled plain vLLM says."""

from __future__ import annotations

import pytest
from cases import KINDS, greedy, tokens
from harness import engines, plain
from small_models import answered
from twin import require_said

pytestmark = pytest.mark.engine

FORKS = {"gemma3": 3}


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """family -> (checkpoint, adapter, requests, result)."""
    root = tmp_path_factory.mktemp("compiled")
    return answered(root, FORKS, lambda _: None, enforce_eager=False)


@pytest.mark.parametrize("family", FORKS)
def test_a_small_compiled_model_says_what_its_twin_says(families, family):
    base, adapter, requests, result = families[family]
    assert result["runner"] == "v1"
    require_said(family, base, adapter, requests, result)


def test_unguided_requests_in_a_guided_batch_say_what_plain_compiled_vllm_says(families):
    base, _, requests, result = families["gemma3"]
    unguided = [
        greedy(request["prompt"], request["sampling"]["max_tokens"])
        for request in requests[KINDS - 1 :: KINDS]
    ]
    (alone,) = engines([{"llm": plain(base, enforce_eager=False), "requests": unguided}])
    assert tokens(result)[KINDS - 1 :: KINDS] == tokens(alone)
