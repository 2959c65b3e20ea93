"""Drafters that read the base's hidden states, on V2: answers are those without drafts, and drafts those
without PAD, also where layers are forked and the model returns two streams.
"""

from __future__ import annotations

import pytest
import tiny
import tiny_drafters
from engine_processes import V2_ENV, engines, pad, plain
from instructed_twin import InstructedTwin, require_twins_tokens
from mixed_requests import KINDS, greedy, mixed_batch
from pytorch_twin import require_said

pytestmark = pytest.mark.engine

TOKENS = 8
PROMPTS = ([3 + (11 * (i % 5) + 5) % 256 for i in range(20)], [7, 99, 310, 41])
DRAFTERS = {
    "eagle": "eagle",
    "eagle3": "eagle3",
    "mtp": "mtp",
    "dflash": "dflash",
    "never": "eagle",
}
"""Name -> method."""

HEADS_ONLY, FORKED = 4, 2
INSTRUCTED = {"instructions": True, "fork_layer": 1, "max_instructions": 2}
BLOCK = 32
FORKS = {
    "eagle": (HEADS_ONLY, FORKED),
    "eagle3": (HEADS_ONLY, FORKED),
    "mtp": (HEADS_ONLY,),
    "dflash": (HEADS_ONLY, FORKED),
    "never": (HEADS_ONLY,),
}
"""Drafter -> fork layers of its engines with PAD."""


def instructed():
    """Under two instructions, one with weights beside it, and unguided."""
    kinds = [
        {"pad_preference": "be funny"},
        {"pad_preference": "be brief", "pad_weights": "helpful=1", "pad_beta": -2.0},
        None,
    ]
    return [greedy(prompt, TOKENS, kind) for prompt in PROMPTS for kind in kinds]


def write_models(drafter, root):
    """(base, model that drafts; None for MTP, whose layers are in the base's own checkpoint)."""
    if drafter == "mtp":
        return tiny_drafters.write_base_with_mtp(root / "ernie"), None
    base = tiny_drafters.write_base(root / "llama")
    write = getattr(tiny_drafters, f"write_{DRAFTERS[drafter]}")
    return base, write(base, root / drafter, **({"sign": -1} if drafter == "never" else {}))


@pytest.fixture(
    scope="module",
    params=["eagle", *(pytest.param(d, marks=pytest.mark.exhaustive) for d in list(DRAFTERS)[1:])],
)
def drafter(request):
    return request.param


@pytest.fixture(scope="module")
def runs(drafter, tmp_path_factory):
    """Fork layer -> (base, adapter, requests, result) of a mixed batch; "plain" -> of the unguided requests
    alone, without PAD; "instructed" -> of requests with instructions, for EAGLE.
    """
    root = tmp_path_factory.mktemp(drafter)
    base, model = write_models(drafter, root)
    drafts = {"method": DRAFTERS[drafter], "num_speculative_tokens": 3}
    drafts |= {"model": str(model)} if model else {}
    bare = [greedy(prompt, TOKENS) for prompt in PROMPTS]
    jobs = {"plain": (base, None, bare, plain(base, speculative_config=drafts))}
    for fork in FORKS[drafter]:
        adapter = root / f"fork-{fork}"
        tiny.write_adapter(base, adapter, fork_layer=fork, std=0.15, beta=1.0)
        requests = mixed_batch(adapter, PROMPTS, TOKENS)
        jobs[fork] = base, adapter, requests, pad(base, adapter, speculative_config=drafts)
    if drafter == "eagle":
        heads = jobs[HEADS_ONLY][1]
        with_instructions = pad(
            base, heads, INSTRUCTED, block_size=BLOCK, speculative_config=drafts
        )
        jobs["instructed"] = base, heads, instructed(), with_instructions
    asked = [
        {"llm": llm, "requests": requests, "record": adapter is not None, "drafts": True}
        for _, adapter, requests, llm in jobs.values()
    ]
    results = engines(asked, V2_ENV, timeout=1800)
    return {
        name: (*job[:3], result) for (name, job), result in zip(jobs.items(), results, strict=True)
    }


def test_every_token_and_reward_is_the_twins_which_drafts_nothing(runs, drafter):
    for fork in FORKS[drafter]:
        base, adapter, requests, result = runs[fork]
        assert result["runner"] == "v2"
        require_said(f"drafts by {drafter}, {fork}", base, adapter, requests, result)
        guided = [one["pad"] for one in result["outputs"] if one["pad"]]
        assert len(guided) == len(PROMPTS) * (KINDS - 1)
        assert {outcome["unguided_tokens"] for outcome in guided} == {0}


def test_a_drafter_reads_the_hidden_states_that_it_reads_without_pad(runs, drafter):
    expected = runs["plain"][3]["drafts"]
    for fork in FORKS[drafter]:
        assert runs[fork][3]["drafts"][KINDS - 1 :: KINDS] == expected  # the unguided ones
    if drafter != "never":
        assert len({tuple(one) for one in expected[0]}) > 1


def test_drafts_are_said_in_guided_answers_where_guidance_agrees(runs, drafter):
    """Each step but one that says a draft says one token."""
    for fork in FORKS[drafter]:
        steps = [len(drafts) for drafts in runs[fork][3]["drafts"]]
        saved = [TOKENS - count for count in steps]
        print(f"\n{drafter}, {fork}: steps saved by drafts {saved}")
        if drafter == "never":
            assert set(saved) == {0}
        else:
            guided = [saved[i] for i in range(len(saved)) if i % KINDS != KINDS - 1]
            assert 0 < sum(guided) < len(guided) * TOKENS / 2


def test_so_it_is_where_requests_bring_instructions(runs, drafter):
    if drafter != "eagle":
        pytest.skip("one drafter is enough")
    base, heads, requests, result = runs["instructed"]
    twin = InstructedTwin(base, heads, fork_layer=INSTRUCTED["fork_layer"], block_size=BLOCK)
    require_twins_tokens(twin, requests, result)
    assert result["drafts"][2::3] == runs["plain"][3]["drafts"]
    guided = [len(drafts) for i, drafts in enumerate(result["drafts"]) if i % 3 != 2]
    assert min(guided) < TOKENS
