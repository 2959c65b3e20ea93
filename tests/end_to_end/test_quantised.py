"""Quantised bases: the rule at the engine's own hidden states, and rewards near those of the original."""

from __future__ import annotations

import packed
import pytest
import tiny
import torch
from cases import KINDS, PROMPTS, greedy, mixed_batch, preferences, share_changed, tokens
from harness import V2_ENV, EngineFailed, engine, engines, pad, plain
from own_states import require_rule, rule
from twin import Twin

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
    made = {"int8": packed.int8, "fp8": packed.fp8, "fp8_by_tensor": packed.fp8_by_tensor}
    return {name: make(base, root / name) for name, make in made.items()}


@pytest.fixture(scope="module")
def v1(copies, forked, batch):
    """int8 and fp8 guided; int8 without PAD."""
    unguided = batch[KINDS - 1 :: KINDS]
    reloaded = {"calls": [["reload_weights", {}]], "rounds": [batch]}
    # vLLM leaves it to its callers to forget what older weights put into the prefix cache.
    llm = pad(copies["int8"], forked, enable_prefix_caching=False)
    guided = [
        {"llm": llm, "requests": batch, "record": "hidden", **reloaded},
        {
            "llm": pad(copies["fp8"], forked, dtype="bfloat16"),
            "requests": batch,
            "record": "hidden",
        },
    ]
    return engines([*guided, {"llm": plain(copies["int8"]), "requests": unguided}])


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
    assert v1[0]["runner"] == "v1"
    assert tokens(v1[0]) == tokens(v2)


def test_the_reward_stream_is_that_of_a_model_that_rounds_as_the_copy_does(v1, base, forked, batch):
    twin = Twin(base, forked)
    packed.round_layers(twin.persrm)
    found = twin.compare(batch, v1[0])
    print(f"\nint8 v1: {found}")
    assert found.rewards > 0
    assert found.reward_error < 1e-3


def test_weights_that_are_read_again_guide_as_before(v1):
    assert v1[0]["said"] == [None]
    assert [one["token_ids"] for one in v1[0]["rounds"][0]] == tokens(v1[0])


def test_unguided_requests_say_what_plain_vllm_says_on_the_copy(v1):
    assert tokens(v1[0])[KINDS - 1 :: KINDS] == tokens(v1[2])


def test_fp8_by_channel_and_token_says_what_the_rule_says(v1, base, forked, batch):
    by = rule(base, forked, torch.bfloat16, 2.0**-7)
    print(f"\nfp8 v1: {require_rule(batch, v1[1], by)}")


def test_one_scale_for_a_whole_batch_is_refused_by_a_fork(copies, forked):
    llm = pad(copies["fp8_by_tensor"], forked, dtype="bfloat16")
    with pytest.raises(EngineFailed, match="quantises a whole batch by one scale"):
        engine({"llm": llm, "requests": []})


def test_heads_alone_are_served_beside_it(copies, base, root, batch):
    heads = tiny.write_adapter(base, root / "heads", fork_layer=4, std=0.15, constants=True)
    llm = pad(copies["fp8_by_tensor"], heads, dtype="bfloat16")
    result = engine({"llm": llm, "requests": batch, "record": "hidden"})
    by = rule(base, heads, torch.bfloat16, 2.0**-7)
    print(f"\nfp8 by tensor, heads only: {require_rule(batch, result, by)}")


@pytest.fixture(scope="module")
def real(smollm2, adapter, root):
    """The same prompts read by SmolLM2 and by a copy in int8; a single token each, guided by an adapter from
    before backbones had landmarks.
    """
    settings = {"allow_backbone_mismatch": True}
    copy = packed.int8(smollm2, root / "smollm2_int8")
    kinds = preferences(adapter)
    asked = [greedy(text, 1, kinds[i % len(kinds)]) for i, text in enumerate(PROMPTS)]
    return engines(
        [
            {"llm": pad(model, adapter, settings), "requests": asked, "record": True}
            for model in (smollm2, copy)
        ]
    )


def test_rewards_of_a_real_model_are_near_those_of_the_original(real):
    pairs = []
    for ours, theirs in zip(*(result["steps"] for result in real), strict=True):
        one, other = (dict(zip(s[0]["ids"], s[0]["reward"], strict=True)) for s in (ours, theirs))
        both = [token for token in one if token in other]
        pairs += [(one[token], other[token]) for token in both]
    original, copy = torch.tensor(pairs).T
    error = (original - copy).abs()
    alike = float(torch.corrcoef(torch.stack((original, copy)))[0, 1])
    print(
        f"\nSmolLM2 in int8, {len(pairs)} rewards of {original.std():.3f} spread: mean error "
        f"{error.mean():.4f}, largest {error.max():.4f}, correlation {alike:.4f}"
    )
    assert alike > 0.9
