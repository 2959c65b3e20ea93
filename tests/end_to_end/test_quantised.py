"""Quantised bases: the rule at the engine's own hidden states, and rewards near those of the original."""

from __future__ import annotations

import pytest
import quantized_copies
import tiny
import torch
from engine_processes import V2_ENV, engine, engines, pad, plain
from mixed_requests import KINDS, PROMPTS, greedy, mixed_batch, preferences, share_changed, tokens
from pytorch_twin import Twin
from rule_at_engine_states import require_rule, rule

pytestmark = pytest.mark.engine

LENGTHS = (5, 40, 19)
TOKENS = 16


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("quantised")


@pytest.fixture(scope="module")
def base(root):
    return tiny.checkpoint("llama", root / "llama")


@pytest.fixture(scope="module")
def forked(base, root):
    """An adapter of the base as it was trained, not of a copy."""
    return tiny.write_adapter(base, root / "forked", fork_layer=2, std=0.15, beta=1.0)


@pytest.fixture(scope="module")
def batch(forked):
    prompts = [[3 + (11 * i + length) % 256 for i in range(length)] for length in LENGTHS]
    return mixed_batch(forked, prompts, TOKENS)


@pytest.fixture(scope="module")
def copies(base, root):
    return {
        name: make(base, root / name)
        for name, make in (("int8", quantized_copies.int8), ("fp8", quantized_copies.fp8))
    }


@pytest.fixture(scope="module")
def heads(base, root):
    return tiny.write_adapter(base, root / "heads", fork_layer=4, std=0.15, constants=True)


@pytest.fixture(scope="module")
def v1(copies, forked, heads, batch):
    """name -> result: int8 and fp8 guided, forked and by heads only; int8 without PAD."""
    jobs = {
        "int8": pad(copies["int8"], forked),
        "fp8": pad(copies["fp8"], forked, dtype="bfloat16"),
        "heads": pad(copies["int8"], heads),
    }
    guided = [{"llm": llm, "requests": batch, "record": "hidden"} for llm in jobs.values()]
    unguided = {"llm": plain(copies["int8"]), "requests": batch[KINDS - 1 :: KINDS]}
    return dict(zip([*jobs, "plain"], engines([*guided, unguided]), strict=True))


@pytest.fixture(scope="module")
def v2(copies, forked, batch):
    return engine(
        {"llm": pad(copies["int8"], forked), "requests": batch, "record": "hidden"}, V2_ENV
    )


def test_v2_says_what_the_rule_says_at_its_own_hidden_states(v2, base, forked, batch):
    assert v2["runner"] == "v2"
    by = rule(base, forked, torch.float32, 1e-4)
    print(f"\nint8 v2: {require_rule(batch, v2, by)}")
    assert share_changed(v2) > 0.5


def test_v1_says_the_same(v1, v2):
    assert v1["int8"]["runner"] == "v1"
    assert tokens(v1["int8"]) == tokens(v2)


# Where a value lies between two of eight bits, the last bit of a sum decides: errors begin at such a step.
ROUNDED = 0.1


def test_both_streams_are_those_of_a_model_that_rounds_as_the_copy_does(v2, base, forked, batch):
    twin = Twin(base, forked)
    quantized_copies.round_layers(twin.persrm)
    found = twin.compare(batch, v2)
    print(f"\nint8 v2: {found}")
    assert found.differences == []
    assert found.ties <= 1
    assert found.rewards > 0
    assert found.reward_error < ROUNDED
    assert found.logit_error < ROUNDED


def test_unguided_requests_say_what_plain_vllm_says_on_the_copy(v1):
    assert tokens(v1["int8"])[KINDS - 1 :: KINDS] == tokens(v1["plain"])


def test_fp8_by_channel_and_token_says_what_the_rule_says(v1, base, forked, batch):
    by = rule(base, forked, torch.bfloat16, 2.0**-7)
    print(f"\nfp8 v1: {require_rule(batch, v1['fp8'], by)}")


def test_heads_only_say_what_the_rule_says(v1, base, heads, batch):
    by = rule(base, heads, torch.float32, 1e-4)
    print(f"\nint8, heads only, v1: {require_rule(batch, v1['heads'], by)}")


@pytest.fixture(scope="module")
def asked(adapter):
    """A single token to each prompt, guided."""
    kinds = preferences(adapter)
    return [greedy(text, 1, kinds[i % len(kinds)]) for i, text in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def real(smollm2, adapter, asked, root):
    """What SmolLM2 and a copy in int8 say, guided by an adapter from before backbones had landmarks."""
    copy = quantized_copies.int8(smollm2, root / "smollm2_int8")
    settings = {"allow_backbone_mismatch": True}
    return engines(
        [
            {"llm": pad(model, adapter, settings), "requests": asked, "record": True}
            for model in (smollm2, copy)
        ]
    )


@pytest.mark.exhaustive
def test_rewards_of_a_real_model_are_near_those_of_the_original(real):
    pairs = []
    for ours, theirs in zip(*(result["steps"] for result in real), strict=True):
        one, other = (dict(zip(s[0]["ids"], s[0]["reward"], strict=True)) for s in (ours, theirs))
        pairs += [(one[token], other[token]) for token in one if token in other]
    original, copy = torch.tensor(pairs).T
    error = (original - copy).abs()
    alike = float(torch.corrcoef(torch.stack((original, copy)))[0, 1])
    print(
        f"\nSmolLM2 in int8, {len(pairs)} rewards of {original.std():.3f} spread: mean error "
        f"{error.mean():.4f}, largest {error.max():.4f}, correlation {alike:.4f}"
    )
    # Rounding alone does as much to it in PyTorch: weights and activations of so small a model in 8 bits.
    assert alike > 0.8
