"""Served in bfloat16: the rule holds at the engine's own hidden states, alone and in company."""

from __future__ import annotations

import pytest
import tiny
import torch
from cases import mixed_batch
from harness import V2_ENV, engines, pad

from pad_vllm import guidance
from pad_vllm.adapter.folder import load_adapter
from pad_vllm.params import parse
from pad_vllm.serving.adapters import limits_of

pytestmark = pytest.mark.engine

RUNNERS = {"v2": V2_ENV, "v1": None}
RESOLUTION = 2.0**-7  # of bfloat16: 8 bits, and an odd one for the order of a sum
REWARD = 1e-3  # rewards are float32


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random checkpoint and an adapter that changes its mind."""
    root = tmp_path_factory.mktemp("bfloat16")
    base = tiny.checkpoint("llama", root / "llama")
    return base, tiny.write_adapter(base, root / "adapter", fork_layer=2, std=0.15, beta=1.0)


@pytest.fixture(scope="module", params=RUNNERS)
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
    """lm_head in float32 and bfloat16, the adapter, and the limits of its requests."""
    from transformers import AutoModelForCausalLM

    base, folder = model
    weight = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16
    ).lm_head.weight.detach()
    adapter = load_adapter(folder)
    config = adapter.config
    return weight, adapter, limits_of(config, 1e3, 1000)


def guided_steps(requests, result, limits):
    """(what was asked, what was noted, the answer so far, the token) of each step of guided requests."""
    for request, output, steps in zip(requests, result["outputs"], result["steps"], strict=True):
        asked = parse(request["sampling"].get("extra_args"), limits)
        said = output["token_ids"]
        for step, (noted, token) in enumerate(zip(steps, said, strict=False)):
            yield asked, {name: torch.tensor(of) for name, of in noted.items()}, said[:step], token


@pytest.mark.parametrize("which", [1, 2], ids=["company", "alone"])
def test_tokens_are_those_of_the_rule_at_the_engines_own_hidden_states(runs, twin, which):
    weight, adapter, limits = twin
    steps = ties = 0
    for asked, noted, answer, token in guided_steps(runs[0], runs[which], limits):
        k = asked.top_k
        z = (noted["h_B"].bfloat16() @ weight.T).float()
        ids, logits = noted["ids"][:k], noted["z"][:k]
        near = RESOLUTION * z.abs().max()
        torch.testing.assert_close(logits, z[ids], rtol=RESOLUTION, atol=float(near) / 4)
        others = z.index_fill(0, ids, float("-inf"))
        assert others.max() <= logits[-1] + near
        w = torch.tensor(asked.weights)
        d_w = guidance.direction(noted["h_B"], noted["h_T"], w, *adapter.heads)
        reward = weight[ids].float() @ d_w
        torch.testing.assert_close(noted["reward"][:k], reward, rtol=REWARD, atol=REWARD)
        few, rewards = others.fill_(float("-inf")), torch.zeros_like(others)
        few[ids], rewards[ids] = logits, reward
        scores = guidance.guide_row(
            few, rewards, asked.beta, k, answer, asked.no_repeat, asked.min_p
        )
        best = scores.topk(2)
        steps += 1
        if best.indices[0] != token:
            ties += 1
            assert best.values[0] - best.values[1] < 2 * abs(asked.beta) * REWARD
            assert best.indices[1] == token
    print(f"\nbfloat16: {steps} steps, {ties} of them ties")
    assert steps > 100
    assert ties <= 2


def test_the_same_hidden_state_gets_the_same_candidates_and_choice_in_any_company(runs, twin):
    limits = twin[2]
    company, alone = (
        {
            (tuple(noted["h_B"].tolist()), tuple(noted["h_T"].tolist()), asked): (noted, token)
            for asked, noted, _, token in guided_steps(runs[0], run, limits)
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
