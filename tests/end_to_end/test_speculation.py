"""Speculative decoding on V2: drafts change how fast an answer comes, and nothing of what it says."""

from __future__ import annotations

import pytest
import tiny
import torch
from engine_processes import V2_ENV, EngineFailed, engine, engines, pad, plain
from mixed_requests import KINDS, greedy, mixed_batch, preferences, tokens
from pytorch_twin import require_said

pytestmark = pytest.mark.engine

NGRAMS = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 3,
}
NGRAMS_AS_WELL = {**NGRAMS, "method": "ngram_gpu"}
SLICE = 7  # logits rows: less than two requests with all their drafts
PERIODS = (5, 3)  # of prompts that repeat themselves: n-gram drafts need something to look up
SONGS = (
    "A song:\nRow, row, row your boat, gently down the stream.\n" * 2 + "Row, row,",
    "Colours: red, green, blue, red, green, blue, red, green,",
)
TOKENS = 14
EXPLAINED = 2  # which of the requests, guarded against loops
# For answers that are drawn: few candidates, so that drafts are likely to be said.
NARROW = {"pad_weights": "helpful=1", "pad_beta": 1.5, "pad_top_k": 4}
DRAWN = 12


def speculating(config):
    return {"speculative_config": config, "disable_log_stats": False}


def accepted(result):
    """The share of the drafts that were said, by vLLM's own counters."""
    drafted, said = (
        result["counters"][f"vllm:spec_decode_num_{name}_tokens"] for name in ("draft", "accepted")
    )
    return said / drafted


def prompts():
    return [[3 + (11 * (i % n) + n) % 256 for i in range(4 * n)] for n in PERIODS]


def mixed(adapter):
    """A mixed batch of which one answer is explained."""
    requests = mixed_batch(adapter, prompts(), TOKENS)
    requests[EXPLAINED]["sampling"]["extra_args"]["pad_explain"] = True
    return requests


def drawn():
    """Guided requests at temperature 1, each with its own seed."""
    return [
        {"prompt": prompts()[0], "sampling": {**one, "seed": seed}}
        for seed in range(DRAWN)
        for one in [{"temperature": 1, "max_tokens": TOKENS, "ignore_eos": True}]
        for one in [{**one, "extra_args": NARROW}]
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """name -> (base, adapter, requests, result): the same requests with drafts and without, of a forked
    model and of heads only; and unguided ones.
    """
    root = tmp_path_factory.mktemp("speculation")
    base = tiny.checkpoint("llama", root / "llama")
    made = {
        name: tiny.write_adapter(base, root / name, fork_layer=fork, std=0.15, beta=1.0)
        for name, fork in (("forked", 2), ("heads", 4))
    }
    model = {"method": "draft_model", "model": str(base), "num_speculative_tokens": 3}
    model["draft_sample_method"] = "probabilistic"
    forked, heads = made["forked"], made["heads"]
    whole, few = mixed(forked), mixed(heads)[:KINDS]
    sliced = {"calls": [["slice_logits", {"rows": SLICE}]], "rounds": [whole[:KINDS]]}
    jobs = {
        "without": (forked, pad(base, forked), whole, {}),
        "ngrams": (forked, pad(base, forked, **speculating(NGRAMS)), whole + drawn(), sliced),
        "model": (
            forked,
            pad(base, forked, **speculating(model)),
            whole[:KINDS] + drawn(),
            {},
        ),
        "heads": (heads, pad(base, heads, **speculating(NGRAMS_AS_WELL)), few, {}),
    }
    asked = [
        {"llm": llm, "requests": requests, "record": True, **more}
        for name, (_, llm, requests, more) in jobs.items()
    ]
    results = engines(asked, V2_ENV, timeout=1800)
    return {
        name: (base, adapter, requests, result)
        for (name, (adapter, _, requests, _)), result in zip(jobs.items(), results, strict=True)
    }


def said(runs, name):
    """What the requests of the mixed batch said."""
    *_, requests, result = runs[name]
    assert result["runner"] == "v2"
    return [one for one, asked in zip(tokens(result), requests, strict=True) if greedily(asked)]


def greedily(request):
    return request["sampling"]["temperature"] == 0


@pytest.mark.parametrize("name", ["ngrams", "model"])
def test_drafts_change_nothing_of_what_is_said(runs, name):
    found = said(runs, name)
    assert found == said(runs, "without")[: len(found)]
    assert 0 < accepted(runs[name][3]) < 1


@pytest.mark.parametrize("name", ["ngrams", "heads"])
def test_every_token_and_reward_is_the_twins(runs, name):
    base, adapter, requests, result = runs[name]
    mixed_ones = [i for i, asked in enumerate(requests) if greedily(asked)]
    result = {
        **result,
        **{key: [result[key][i] for i in mixed_ones] for key in ("outputs", "steps")},
    }
    assert all(len(steps) == TOKENS for i, steps in enumerate(result["steps"]) if (i + 1) % KINDS)
    require_said(f"{name}, drafts", base, adapter, [requests[i] for i in mixed_ones], result)


def test_rows_that_vllm_verifies_in_slices_are_guided_as_in_one_piece(runs):
    (again,) = runs["ngrams"][3]["rounds"]
    assert [output["token_ids"] for output in again] == said(runs, "without")[:KINDS]
    assert {output["pad"]["unguided_tokens"] for output in again if output["pad"]} == {0}


def test_no_token_went_unguided(runs):
    for *_, requests, result in runs.values():
        for asked, output in zip(requests, result["outputs"], strict=True):
            if asked["sampling"].get("extra_args"):
                assert output["pad"]["unguided_tokens"] == 0


def test_what_is_explained_is_what_was_said_and_not_what_was_drafted(runs):
    (expected,), (found,) = (
        runs[name][3]["outputs"][EXPLAINED]["pad"]["explained"] for name in ("without", "ngrams")
    )
    assert len(found) == TOKENS
    for one, other in zip(found, expected, strict=True):
        assert one == {**other, "reward": pytest.approx(other["reward"], abs=1e-3)}


@pytest.mark.parametrize("name", ["ngrams", "model"])
def test_drawn_tokens_are_as_likely_as_guidance_makes_them(runs, name):
    """And not as the base would: how often the likeliest was drawn, against what is expected of it."""
    *_, requests, result = runs[name]
    far = {"guided": 0.0, "base": 0.0}
    variance = dict.fromkeys(far, 0.0)
    count = 0
    for asked, output, steps in zip(requests, result["outputs"], result["steps"], strict=True):
        if greedily(asked):
            continue
        for token, step in zip(output["token_ids"], steps, strict=True):
            k = NARROW["pad_top_k"]
            z, reward = (torch.tensor(step[key][:k]) for key in ("z", "reward"))
            guided = (z + NARROW["pad_beta"] * reward).softmax(0)
            assert token in step["ids"][:k]
            likeliest = int(guided.argmax())
            for name_, p in (("guided", guided), ("base", z.softmax(0))):
                far[name_] += (token == step["ids"][likeliest]) - float(p[likeliest])
                variance[name_] += float(p[likeliest] * (1 - p[likeliest]))
            count += 1
    errors = {name_: far[name_] / variance[name_] ** 0.5 for name_ in far}
    print(f"\n{name}, {count} tokens drawn: {errors} standard errors")
    assert abs(errors["guided"]) < 4
    assert abs(errors["base"]) > 6


@pytest.mark.exhaustive  # minutes under the interpreter
def test_a_real_model_says_with_drafts_what_it_says_without(smollm2, adapter):
    kinds = [*preferences(adapter)[::2], None]
    requests = [greedy(prompt, TOKENS, kind) for prompt in SONGS for kind in kinds]
    guided = [one for one in requests if "extra_args" in one["sampling"]]
    unguided = [one for one in requests if one not in guided]
    drafted, alone, bare, without = engines(
        [
            {"llm": pad(smollm2, adapter, **speculating(NGRAMS)), "requests": requests},
            {"llm": pad(smollm2, adapter, **speculating(NGRAMS)), "requests": guided},
            {"llm": plain(smollm2, **speculating(NGRAMS)), "requests": unguided},
            {"llm": pad(smollm2, adapter), "requests": requests},
        ],
        V2_ENV,
    )
    print(f"\ndrafts said: guided {accepted(alone):.0%}, unguided {accepted(bare):.0%}")
    assert tokens(drafted) == tokens(without)
    assert tokens(bare) == tokens(without)[len(kinds) - 1 :: len(kinds)]
    assert min(accepted(alone), accepted(bare)) > 0.2


@pytest.mark.parametrize(
    ("settings", "more", "said"),
    [
        ({"engine": "resident"}, {}, "resident engine does not support speculative decoding yet"),
        ({"engine": "ray"}, {}, "ray engine does not support speculative decoding yet"),
        ({}, {"rejection_sample_method": "block"}, "rejection_sample_method 'block' yet"),
    ],
)
def test_what_was_not_tested_is_refused_by_name(runs, settings, more, said):
    base, adapter, *_ = runs["without"]
    llm = pad(base, adapter, settings, **speculating({**NGRAMS, **more}))
    with pytest.raises(EngineFailed, match=said):
        engine({"llm": llm, "requests": []}, V2_ENV)


def test_preferences_differ(runs):
    """Or guided answers would be equal whoever's rows they came from."""
    assert len(preferences(runs["ngrams"][1])) == KINDS - 1
    for start in range(0, len(PERIODS) * KINDS, KINDS):
        assert len({tuple(one) for one in said(runs, "ngrams")[start : start + KINDS]}) > 2
