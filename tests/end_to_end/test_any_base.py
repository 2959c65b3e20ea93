"""Bases of other families with tokenizers of their own: the rewards are the twin's, of the same text."""

from __future__ import annotations

import pytest
import tiny
from engine_processes import engine, pad
from tiny_tokenizers import bytewise, sentencepiece
from uncached_rewards import UncachedRewards

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.text.token_alignment import TokenAligner

pytestmark = pytest.mark.engine

TOKENS = 14
PAIRS = {  # the base's family and tokenizer, the reward model's, how candidates are scored
    "mistral": ("mistral", lambda: sentencepiece(1), "llama", bytewise, "exact"),
    "llama-2": ("llama", lambda: sentencepiece(1), "gemma3", lambda: sentencepiece(0), "exact"),
    "qwen": ("qwen2", bytewise, "gemma3", lambda: sentencepiece(0), "first"),
}
FORKS = {"llama": 2, "gemma3": 3}
CHATS = (
    [{"role": "user", "content": "Do dogs bark?"}],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "日本の犬"},
        {"role": "assistant", "content": "12345 cats."},
        {"role": "user", "content": "And naïve   dogs\n\nhere?"},
    ],
)
KINDS = (
    {"pad_weights": "helpful=1", "pad_top_k": 6},
    {
        "pad_weights": "brief=-1,humor=0.5",
        "pad_beta": 1.5,
        "pad_preference": "formal, but humorous",
    },
    None,
)


@pytest.fixture(
    scope="module",
    params=["mistral", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in list(PAIRS)[1:])],
)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def run(name, tmp_path_factory):
    root = tmp_path_factory.mktemp("any_base")
    requests = []
    for chat in CHATS:
        for kind in KINDS:
            sampling = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
            sampling |= {"extra_args": kind} if kind else {}
            requests.append({"messages": chat, "sampling": sampling})
    family, words, other, own, scored = PAIRS[name]
    base = tiny.checkpoint(family, root / name, words())
    backbone = tiny.checkpoint(other, root / f"{name}_persrm", own())
    folder = root / f"{name}_adapter"
    tiny.write_adapter(backbone, folder, fork_layer=FORKS[other], std=0.15, beta=1.0)
    settings = {"engine": "resident", "backbone": str(backbone), "cache_gib": 0.1}
    llm = pad(base, folder, {**settings, "candidates": scored})
    result = engine({"llm": llm, "requests": requests, "record": True})
    return words(), own(), backbone, folder, scored, requests, result


def weights(kind, dimensions):
    named = dict(pair.split("=") for pair in kind["pad_weights"].split(","))
    return [float(named.get(name, 0.0)) for name in dimensions]


def test_the_rewards_are_those_of_the_whole_text_and_the_best_score_is_taken(run, name):
    words, own, backbone, folder, scored, requests, result = run
    slow, reader, compared = (
        UncachedRewards(backbone, load_adapter(folder)),
        TokenAligner(words, own),
        0,
    )
    assert not reader.same_tokens
    for request, output, steps in zip(requests, result["outputs"], result["steps"], strict=True):
        kind = request["sampling"].get("extra_args")
        if kind is None:
            continue
        w, said = weights(kind, slow.dimensions), output["token_ids"]
        assert len(steps) == TOKENS
        for number, step in enumerate(steps):
            reading = reader.start(output["prompt_token_ids"], kind.get("pad_preference", ""))
            reading.extend(said[:number])
            count = kind.get("pad_top_k", 10)
            for token, reward in zip(step["ids"][:count], step["reward"], strict=False):
                (change,) = reading.candidate_changes([token])
                wanted = slow.reward(reading.tokens, change, w, exact=scored == "exact")
                assert reward == pytest.approx(wanted, abs=1e-3)
                compared += 1
            beta = kind.get("pad_beta", 1.0)
            scores = [z + beta * r for z, r in zip(step["z"], step["reward"], strict=True)][:count]
            best = max(range(count), key=scores.__getitem__)
            assert said[number] == step["ids"][best]
    print(f"\n{name}: {compared} rewards")
    assert compared == TOKENS * len(CHATS) * (6 + 10)


def test_a_preference_in_words_changes_the_rewards(run):
    words, own, *_ = run
    reader = TokenAligner(words, own)
    plain, stated = (
        reader.start(words.apply_chat_template(CHATS[0], return_dict=False), said)
        for said in ("", "formal, but humorous")
    )
    assert "formal, but humorous" in own.decode(stated.tokens)
    assert "formal, but humorous" not in own.decode(plain.tokens)


def test_guided_and_unguided_answers_differ(run):
    *_, result = run
    said = [output["token_ids"] for output in result["outputs"]]
    assert all(said[i] != said[i + 2] and said[i + 1] != said[i + 2] for i in (0, 3))
