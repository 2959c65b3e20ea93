"""Served in bfloat16: the rule holds at the engine's own hidden states, alone and in company."""

from __future__ import annotations

import pytest
import tiny
import torch
from engine_processes import V2_ENV, engines, pad
from mixed_requests import mixed_batch
from rule_at_engine_states import guided_steps, require_rule, rule

pytestmark = pytest.mark.engine

RUNNERS = {"v2": V2_ENV, "v1": None}
RESOLUTION = 2.0**-7  # of bfloat16: 8 bits, and an odd one for the order of a sum


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random checkpoint and an adapter that changes its mind."""
    root = tmp_path_factory.mktemp("bfloat16")
    base = tiny.checkpoint("llama", root / "llama")
    return base, tiny.write_adapter(base, root / "adapter", fork_layer=2, std=0.15, beta=1.0)


@pytest.fixture(scope="module", params=["v2", pytest.param("v1", marks=pytest.mark.exhaustive)])
def runs(request, model):
    """The requests, and what came of them in one batch and one by one."""
    prompts = [[3 + (11 * i + length) % 256 for i in range(length)] for length in (5, 40, 19)]
    requests = mixed_batch(model[1], prompts, 16)
    jobs = [
        {"llm": pad(*model, dtype="bfloat16", **batch), "requests": requests, "record": "hidden"}
        for batch in ({}, {"max_num_seqs": 1})
    ]
    company, alone = engines(jobs, RUNNERS[request.param])
    assert company["runner"] == alone["runner"] == request.param
    return requests, company, alone


@pytest.fixture(scope="module")
def twin(model):
    return rule(*model, torch.bfloat16, RESOLUTION)


@pytest.mark.parametrize("which", [1, 2], ids=["company", "alone"])
def test_tokens_are_those_of_the_rule_at_the_engines_own_hidden_states(runs, twin, which):
    print(f"\nbfloat16: {require_rule(runs[0], runs[which], twin)}")


def test_the_same_hidden_state_gets_the_same_candidates_and_choice_in_any_company(runs, twin):
    company, alone = (
        {
            (tuple(noted["h_B"].tolist()), tuple(noted["h_T"].tolist()), asked): (noted, token)
            for asked, noted, _, token in guided_steps(runs[0], run, twin.limits)
        }
        for run in runs[1:]
    )
    same = company.keys() & alone.keys()
    print(f"\nbfloat16: {len(same)} of {len(alone)} hidden states are the same in both")
    assert len(same) > 10
    for state in same:
        (one, token), (other, other_token) = company[state], alone[state]
        k = state[2].top_k
        if torch.equal(one["z"][:k], other["z"][:k]):
            assert torch.equal(one["ids"][:k], other["ids"][:k])
            assert token == other_token
