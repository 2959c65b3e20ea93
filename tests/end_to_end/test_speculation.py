"""Speculative decoding on V2: drafts change how fast an answer comes, and nothing of what it says."""

from __future__ import annotations

import pytest
import tiny
import torch
from cases import KINDS, PROMPTS, greedy, mixed_batch, share_changed, tokens
from harness import V2_ENV, engines, pad, plain
from twin import TIE, Twin

pytestmark = pytest.mark.engine

DRAFTS = 3
NGRAMS = {
    "method": "ngram",
    "num_speculative_tokens": DRAFTS,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 3,
}
SPECULATING = {"speculative_config": NGRAMS, "disable_log_stats": False}
SLICE = 7  # logits rows: less than two requests with all their drafts
# Lengths of what a prompt says over and over: n-gram drafts need something to look up.
PERIODS = (5, 3, 8)


def accepted(result):
    """The share of the drafts that were said, by vLLM's own counters."""
    drafted, said = (
        result["counters"][f"vllm:spec_decode_num_{name}_tokens"] for name in ("draft", "accepted")
    )
    return said / drafted


def explained(request):
    """The same request, told what its tokens earned."""
    sampling = request["sampling"]
    asked = {**sampling["extra_args"], "pad_explain": True}
    return {**request, "sampling": {**sampling, "extra_args": asked}}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Random models, forked and heads alone -> (base, adapter, requests, speculating, not)."""
    root, made = tmp_path_factory.mktemp("speculation"), {}
    for name, fork, family in (("forked", 2, "llama"), ("heads", 4, "llama")):
        base = tiny.checkpoint(family, root / name)
        adapter = tiny.write_adapter(
            base, root / f"{name}_adapter", fork_layer=fork, std=0.15, beta=1.0
        )
        prompts = [[3 + (11 * (i % n) + n) % 256 for i in range(4 * n)] for n in PERIODS]
        requests = mixed_batch(adapter, prompts, 24)
        requests[2] = explained(requests[2])
        made[name] = (base, adapter, requests)
    jobs = []
    for base, adapter, requests in made.values():
        again = {"calls": [["slice_logits", {"rows": SLICE}]], "rounds": [requests]}
        job = {"requests": requests, "record": True}
        jobs += [
            {"llm": pad(base, adapter, **SPECULATING), **job, **again},
            {"llm": pad(base, adapter), **job},
        ]
    results = iter(engines(jobs, V2_ENV))
    return {name: (*made[name], next(results), next(results)) for name in made}


@pytest.mark.parametrize("name", ["forked", "heads"])
def test_drafts_change_nothing_of_what_is_said(small, name):
    *_, speculating, not_ = small[name]
    print(f"\n{name}: {accepted(speculating):.0%} of the drafts said")
    assert speculating["runner"] == "v2"
    assert tokens(speculating) == tokens(not_)
    assert 0.1 < accepted(speculating) < 0.95
