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
CASES = [
    *((name, HEADS_ONLY) for name in DRAFTERS),
    *((name, FORKED) for name in ("eagle", "eagle3", "dflash")),
]
"""Drafter and fork layer of each engine with PAD."""


def instructed():
    """Under two instructions, one with weights beside it, and unguided."""
    kinds = [
        {"pad_preference": "be funny"},
        {"pad_preference": "be brief", "pad_weights": "helpful=1", "pad_beta": -2.0},
        None,
    ]
    return [greedy(prompt, TOKENS, kind) for prompt in PROMPTS for kind in kinds]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(drafter, fork layer) -> (base, adapter, requests, result) of a mixed batch; drafter -> result of the
    unguided requests alone, without PAD.
    """
    root = tmp_path_factory.mktemp("drafters")
    base = tiny_drafters.write_base(root / "llama")
    with_mtp = tiny_drafters.write_base_with_mtp(root / "ernie")
    models = {
        "eagle": tiny_drafters.write_eagle(base, root / "eagle"),
        "eagle3": tiny_drafters.write_eagle3(base, root / "eagle3"),
        "dflash": tiny_drafters.write_dflash(base, root / "dflash"),
        "never": tiny_drafters.write_eagle(base, root / "never", sign=-1),
    }
    jobs = {}
    for drafter, fork in CASES:
        served = with_mtp if drafter == "mtp" else base
        adapter = root / f"{served.name}-{fork}"
        if not adapter.exists():
            tiny.write_adapter(served, adapter, fork_layer=fork, std=0.15, beta=1.0)
        drafts = {"speculative_config": {"method": DRAFTERS[drafter], "num_speculative_tokens": 3}}
        if drafter in models:  # MTP layers are in the base's own checkpoint
            drafts["speculative_config"]["model"] = str(models[drafter])
        requests = mixed_batch(adapter, PROMPTS, TOKENS)
        jobs[drafter, fork] = served, adapter, requests, pad(served, adapter, **drafts)
        bare = [greedy(prompt, TOKENS) for prompt in PROMPTS]
        if drafter != "never":
            jobs.setdefault(drafter, (served, None, bare, plain(served, **drafts)))
    heads, drafts = root / f"llama-{HEADS_ONLY}", jobs["eagle", HEADS_ONLY][3]["speculative_config"]
    jobs["instructed"] = (
        *(base, heads, instructed()),
        pad(base, heads, INSTRUCTED, block_size=BLOCK, speculative_config=drafts),
    )
    asked = [
        {"llm": llm, "requests": requests, "record": adapter is not None, "drafts": True}
        for _, adapter, requests, llm in jobs.values()
    ]
    results = engines(asked, V2_ENV, timeout=1800)
    return {
        name: (*job[:3], result) for (name, job), result in zip(jobs.items(), results, strict=True)
    }


@pytest.mark.parametrize("case", CASES)
def test_every_token_and_reward_is_the_twins_which_drafts_nothing(runs, case):
    base, adapter, requests, result = runs[case]
    assert result["runner"] == "v2"
    require_said(f"drafts by {case}", base, adapter, requests, result)
    guided = [one["pad"] for one in result["outputs"] if one["pad"]]
    assert len(guided) == len(PROMPTS) * (KINDS - 1)
    assert {outcome["unguided_tokens"] for outcome in guided} == {0}


@pytest.mark.parametrize("case", [case for case in CASES if case[0] != "never"])
def test_a_drafter_reads_the_hidden_states_that_it_reads_without_pad(runs, case):
    drafted, expected = runs[case][3]["drafts"], runs[case[0]][3]["drafts"]
    assert drafted[KINDS - 1 :: KINDS] == expected  # the unguided ones
    assert len({tuple(one) for one in expected[0]}) > 1


@pytest.mark.parametrize("case", CASES)
def test_drafts_are_said_in_guided_answers_where_guidance_agrees(runs, case):
    """Each step but one that says a draft says one token."""
    steps = [len(drafts) for drafts in runs[case][3]["drafts"]]
    saved = [TOKENS - count for count in steps]
    print(f"\n{case}: steps saved by drafts {saved}")
    if case[0] == "never":
        assert set(saved) == {0}
    else:
        guided = [saved[i] for i in range(len(saved)) if i % KINDS != KINDS - 1]
        assert 0 < sum(guided) < len(guided) * TOKENS / 2


def test_so_it_is_where_requests_bring_instructions(runs):
    base, heads, requests, result = runs["instructed"]
    twin = InstructedTwin(base, heads, fork_layer=INSTRUCTED["fork_layer"], block_size=BLOCK)
    require_twins_tokens(twin, requests, result)
    assert result["drafts"][2::3] == runs["eagle"][3]["drafts"]
    guided = [len(drafts) for i, drafts in enumerate(result["drafts"]) if i % 3 != 2]
    assert min(guided) < TOKENS
