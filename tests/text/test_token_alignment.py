"""The PersRM's tokens beside the base's: always those of the whole text. No model runs."""

from __future__ import annotations

import codecs
import functools
import itertools
import random
import re
import statistics
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import (
    CHAT,
    CORPUS,
    bytewise,
    lossy,
    sentencepiece,
    split_as_qwen,
    wrapped,
)
from tokenizers import Tokenizer, decoders, models

from pad_vllm.text import change_cache, incremental_encoding
from pad_vllm.text.conversation_from_prompt import persrm_prompt_ids
from pad_vllm.text.token_alignment import TokenAligner
from pad_vllm.text.token_texts import TokenDecoder

UNKNOWN = (10**6, 2**32, 2**70, -1)  # ids that no tokenizer has
TINY = {
    "bytewise": bytewise,
    "prefixed": functools.partial(bytewise, prefix=True),
    "gemma": functools.partial(sentencepiece, 0),
    "llama": functools.partial(sentencepiece, 1),
    "lossy": lossy,
}
QWEN_PAIRS = [("gemma", "qwen"), ("qwen", "gemma"), ("llama", "qwen"), ("qwen", "bytewise")]
PAIRS = [(base, persrm) for base in TINY for persrm in TINY if base != persrm]
TINY["qwen"] = split_as_qwen
PAIRS += QWEN_PAIRS


@functools.cache
def aligner_of(base, persrm):
    return TokenAligner(TINY[base](), TINY[persrm]())


def without_caches(aligner):
    """An aligner that looks at a longer end of the text, and remembers no candidate."""
    aligner._tokenizers.encoder.word_starts._before_blank = frozenset()
    aligner._tokenizers.changes.add = lambda *_: None
    return aligner


@functools.cache
def plain_aligner_of(base, persrm):
    return without_caches(TokenAligner(TINY[base](), TINY[persrm]()))


@pytest.fixture(scope="module")
def real(smollm2, gemma3):
    """Aligners both ways, and their tokenizers."""
    from transformers import AutoTokenizer

    smol, gemma = (AutoTokenizer.from_pretrained(folder) for folder in (smollm2, gemma3))
    return [(TokenAligner(smol, gemma), smol, gemma), (TokenAligner(gemma, smol), gemma, smol)]


@pytest.fixture(scope="module")
def real_plain(real):
    """The same aligners without caches."""
    return [without_caches(TokenAligner(base, persrm)) for _, base, persrm in real]


WORDS = st.sampled_from(
    [
        *(sentence[:40] for sentence in CORPUS),
        *(" the", " dog", "'s", "12", "3", " ", "  ", "\n", "\n\n", "\t", "é", "e\u0301", "犬"),
        *(
            "🐕",
            "👩\u200d🚀",
            "\ufffd",
            "▁",
            "<|im_end|>",
            "<|im_",
            "</s>",
            "<0x41>",
            ",",
            "…",
            "aaaa",
        ),
    ]
)
TEXTS = st.lists(WORDS | st.text(max_size=8), max_size=8).map("".join)


def token_lists(tokenizer):
    """Tokens of texts, any tokens, and bytes that need not be characters, in any order."""
    encoded = TEXTS.map(lambda text: tokenizer.encode(text, add_special_tokens=False))
    one = st.integers(0, len(tokenizer) + 2) | st.sampled_from(UNKNOWN)
    bytewise = [tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") for b in (0xE7, 0x8A, 0xAC, 0x20)]
    byte = st.sampled_from([i for i in bytewise if i is not None] or [0])
    part = encoded | st.lists(one, max_size=4) | st.lists(byte, max_size=5)
    return st.lists(part, max_size=4).map(lambda parts: [i for part in parts for i in part])


def existing(tokenizer, ids):
    return [i for i in ids if 0 <= i < len(tokenizer)]


def decoded(tokenizer, ids):
    return tokenizer.decode(existing(tokenizer, ids), skip_special_tokens=True)


def complete(tokenizer, ids):
    """What decode makes of tokens without the bytes of a character that is not complete."""
    text = decoded(tokenizer, ids)
    if "ByteLevel" in str(tokenizer.backend_tokenizer.decoder):
        return text  # the test knows these bytes as one U+FFFD at the end
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    kept = [i for i in existing(tokenizer, ids) if i not in special]
    names = tokenizer.convert_ids_to_tokens(kept)
    run = itertools.takewhile(lambda name: re.fullmatch("<0x..>", name), reversed(names))
    utf8 = codecs.getincrementaldecoder("utf-8")()
    try:
        utf8.decode(bytes(int(name[3:5], 16) for name in reversed(list(run))))
    except UnicodeDecodeError:
        return text
    return decoded(tokenizer, kept[: len(kept) - len(utf8.getstate()[0])])


def applied(tokens, change):
    keep, added = change
    assert not added or tokens[keep : keep + 1] != [added[0]], "keep is not the longest"
    return tokens[:keep] + list(added)


def follows(aligner, base, persrm, ids, sizes):
    """Extend by pieces of these sizes, and compare with the encoding of the whole each time."""
    aligned = aligner.start(base.encode("Hi"))
    prompt, done = list(aligned.tokens), 0
    while done < len(ids):
        size = sizes[done % len(sizes)]
        piece = ids[done : done + size]
        done += size
        before, changes = list(aligned.tokens), aligned.candidate_changes([*piece, 5, *UNKNOWN])
        assert aligned.tokens == before
        assert changes[-4:] == [(len(before), ())] * 4
        aligned.extend(piece)
        text = aligned._answer.text
        assert aligned.tokens == prompt + persrm.encode(text, add_special_tokens=False)
        held = (
            "\ufffd"
            if aligner._tokenizers.decoder._bytewise and aligned._tail.pending_bytes
            else ""
        )
        assert text + held == complete(base, ids[:done])
        if len(piece) == 1 and piece[0] not in aligner._tokenizers.ends:
            assert applied(before, changes[0]) == aligned.tokens


SIZES = st.lists(st.sampled_from([1, 1, 1, 2, 7]), min_size=1, max_size=5)


@pytest.mark.parametrize(("base", "persrm"), PAIRS)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_the_tokens_are_those_of_the_whole_text_after_any_base_tokens(base, persrm, data):
    ids = data.draw(token_lists(TINY[base]()))
    follows(aligner_of(base, persrm), TINY[base](), TINY[persrm](), ids, data.draw(SIZES))


def same_changes(cached, plain, base, persrm, ids, candidates):
    """Every candidate at every token: as without caches, and as the encoding of the whole text."""
    ours, theirs = (one.start(base.encode("Hi")) for one in (cached, plain))
    prompt = list(ours.tokens)
    for number, token in enumerate(ids):
        asked = [token, *candidates[number % 3 :]]
        changes = ours.candidate_changes(asked)
        assert changes == theirs.candidate_changes(asked)
        assert changes == ours.candidate_changes(asked), "the second time"
        for candidate, change in zip(asked, changes, strict=True):
            if candidate not in cached._tokenizers.ends:
                splice = ours._splice(*ours._decoder.decode(ours._tail, [candidate]))
                text = ours._answer.text[: splice.num_kept] + splice.text
                whole = prompt + persrm.encode(text, add_special_tokens=False)
                assert applied(ours.tokens, change) == whole
        ours.extend([token])
        theirs.extend([token])
        assert ours.tokens == theirs.tokens


@pytest.mark.parametrize(("base", "persrm"), PAIRS)
@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_cached_changes_are_those_that_encoding_the_text_gives(base, persrm, data):
    aligners = aligner_of(base, persrm), plain_aligner_of(base, persrm)
    ids, candidates = (data.draw(token_lists(TINY[base]())) for _ in range(2))
    same_changes(*aligners, TINY[base](), TINY[persrm](), ids[:24], candidates[:8])


def test_a_candidate_that_begins_a_word_is_encoded_once_for_all_texts(monkeypatch):
    base, aligner = TINY["bytewise"](), TokenAligner(TINY["bytewise"](), TINY["qwen"]())
    encode, encoded = incremental_encoding.WindowEncoder.__call__, []

    def recorded(encoder, texts):
        encoded.extend(texts)
        return encode(encoder, texts)

    monkeypatch.setattr(incremental_encoding.WindowEncoder, "__call__", recorded)
    words = [i for i in range(len(base)) if base.decode([i]).startswith(" d")]
    found = []
    for text in ("The dog", "cats aren't barking"):
        aligned = aligner.start(base.encode("Hi"))
        aligned.extend(base.encode(text, add_special_tokens=False))
        encoded.clear()
        found.append([added for _, added in aligned.candidate_changes(words)])
        assert len(encoded) == (len(words) if text == "The dog" else 0)
    assert found[0] == found[1]


def test_as_many_changes_are_remembered_as_there_may_be(monkeypatch):
    monkeypatch.setattr(change_cache, "MAX_CHANGES", 50)
    base, aligner = TINY["bytewise"](), TokenAligner(TINY["bytewise"](), TINY["gemma"]())
    aligned, remembered = aligner.start(base.encode("Hi")), aligner._tokenizers.changes._changes
    for token in base.encode(" ".join(CORPUS), add_special_tokens=False):
        aligned.candidate_changes(range(30, 50))
        aligned.extend([token])
        assert sum(map(len, remembered.values())) <= 50
    assert remembered


@pytest.mark.parametrize("persrm", [name for name in TINY if name != "bytewise"])
@pytest.mark.parametrize(
    "text",
    [
        "a" * 300,
        "\n" * 50,
        " " * 90 + "x",
        "123" * 60,
        "犬" * 40,
        "🐕" * 40,
        "<|im_end|>" * 9,
        "\t" * 60,
    ],
)
def test_long_runs_of_one_thing_are_followed(persrm, text):
    base = TINY["bytewise"]()
    ids = base.encode(text, add_special_tokens=False)
    follows(aligner_of("bytewise", persrm), base, TINY[persrm](), ids, [1])


@pytest.mark.parametrize("name", TINY)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_tokens_as_text_are_what_decode_makes_of_them(name, data):
    tokenizer = TINY[name]()
    ids = data.draw(token_lists(tokenizer))
    assert finished(TokenDecoder(tokenizer.backend_tokenizer), ids) == decoded(tokenizer, ids)


def finished(decoder, ids):
    """The text of tokens after which nothing comes: what is held back is shown as it is."""
    text, tail = decoder.decode(decoder.initial_tail, ids)
    if decoder._bytewise:
        return text + tail.pending_bytes.decode("utf-8", "replace")
    try:
        rest = tail.pending_bytes.decode()
    except UnicodeDecodeError:
        rest = "\ufffd" * len(tail.pending_bytes)
    return text + decoder._stripped(rest, tail.blanks_to_strip)[0]


def test_the_bytes_of_a_character_are_held_back_until_it_is_complete():
    base, persrm = TINY["gemma"](), TINY["bytewise"]()
    first, second, third = (base.convert_tokens_to_ids(f"<0x{b:02X}>") for b in "€".encode())
    aligned = aligner_of("gemma", "bytewise").start([])
    prompt = list(aligned.tokens)
    for token in (first, second):
        assert aligned.candidate_changes([token]) == [(len(prompt), ())]
        aligned.extend([token])
        assert aligned.tokens == prompt
    aligned.extend([third])
    euro = persrm.encode("€", add_special_tokens=False)
    assert aligned.tokens == prompt + euro
    # A wrong byte spoils the run it stands in, back to its first byte: that is how it is decoded.
    aligned.extend([first, first])
    assert decoded(base, [first, second, third, first, first]) == "\ufffd" * 5
    assert aligned.tokens == prompt + persrm.encode("\ufffd" * 5, add_special_tokens=False)


@pytest.mark.parametrize(("base", "persrm"), PAIRS)
def test_a_candidate_that_ends_the_turn_is_the_persrms_own_end(base, persrm):
    ours, theirs = TINY[base](), TINY[persrm]()
    aligned = aligner_of(base, persrm).start(ours.encode("Hi"))
    before = list(aligned.tokens)
    ends = [ours.eos_token_id, ours.convert_tokens_to_ids("<|im_end|>")]
    end = theirs.convert_tokens_to_ids("<|im_end|>")
    assert aligned.candidate_changes(ends) == [(len(before), (end,))] * 2
    aligned.extend(ends)
    assert aligned.tokens == before
    assert aligned.candidate_changes([ours.convert_tokens_to_ids("<|im_start|>")]) == [
        (len(before), ())
    ]


def test_without_a_template_the_end_is_eos():
    plain = bytewise(chat_template=None)
    changes = (
        TokenAligner(sentencepiece(0), plain)
        .start([])
        .candidate_changes([sentencepiece(0).eos_token_id])
    )
    assert changes[0][1] == (plain.eos_token_id,)


def test_one_tokenizer_in_both_models_passes_ids_through():
    same = TokenAligner(bytewise(), bytewise.__wrapped__())
    assert same.same_tokens
    aligned = same.start([5, 6])
    aligned.extend([7, 8])
    assert aligned.tokens == [5, 6, 7, 8]
    assert aligned.candidate_changes([9, 10]) == [(4, (9,)), (4, (10,))]


def test_a_preference_stands_in_the_persrms_prompt_only():
    tokenizer = bytewise()
    messages = [{"role": "user", "content": "Hi dog"}]
    asked = persrm_prompt_ids(tokenizer, messages)
    expected = persrm_prompt_ids(tokenizer, messages, "Bark.")
    for base, persrm in ((tokenizer, tokenizer), (sentencepiece(0), tokenizer)):
        aligned = TokenAligner(base, persrm).start(persrm_prompt_ids(base, messages), "Bark.")
        assert "[Principles] Bark. [Instruction] Hi dog" in tokenizer.decode(aligned.tokens)
        assert aligned.tokens == expected != asked
    aligned = TokenAligner(tokenizer, tokenizer).start(asked, "Bark.")
    aligned.extend([7])
    assert aligned.tokens == [*expected, 7]


@pytest.mark.parametrize(
    "other",
    [bytewise(chat_template=None), bytewise(prefix=True, chat_template=CHAT + " "), lossy()],
)
def test_other_tokens_or_another_template_are_not_the_same(other):
    assert not TokenAligner(bytewise(), other).same_tokens


def test_a_tokenizer_whose_tokens_cannot_be_followed_is_refused():
    odd = wrapped(Tokenizer(models.BPE()), CHAT)
    odd.backend_tokenizer.decoder = decoders.CTC()
    with pytest.raises(ValueError, match="CTC.*accepted: ByteLevel.*Use a PersRM"):
        TokenAligner(odd, bytewise())
    with pytest.raises(ValueError, match="the PersRM's tokenizer is a object.*accepted.*fast"):
        TokenAligner(bytewise(), object())


def test_only_the_end_of_a_long_answer_is_encoded_again():
    base = TINY["bytewise"]()
    follower = TokenAligner(base, TINY["llama"]())
    aligned = follower.start([])
    aligned.extend(base.encode(" ".join(CORPUS) * 30, add_special_tokens=False))
    follower._tokenizers.encoder._cache.clear()
    aligned.candidate_changes(range(20, 40))
    assert max(map(len, follower._tokenizers.encoder._cache)) < 150 < len(aligned._answer.text) / 50


@pytest.mark.exhaustive
@pytest.mark.engine
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_real_tokenizers_follow_each_other(real, data):
    for one, base, persrm in real:
        follows(one, base, persrm, data.draw(token_lists(base)), data.draw(SIZES))


@pytest.mark.exhaustive
@pytest.mark.engine
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_cached_changes_of_real_tokenizers_are_those_of_the_whole_text(real, real_plain, data):
    for (cached, base, persrm), plain in zip(real, real_plain, strict=True):
        ids, candidates = (data.draw(token_lists(base)) for _ in range(2))
        same_changes(cached, plain, base, persrm, ids[:24], candidates[:8])


@pytest.mark.exhaustive
@pytest.mark.engine
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_real_tokens_as_text_are_what_decode_makes_of_them(real, data):
    for _, base, _ in real:
        ids = data.draw(token_lists(base))
        assert finished(TokenDecoder(base.backend_tokenizer), ids) == decoded(base, ids)


@pytest.mark.exhaustive
@pytest.mark.engine
def test_ten_candidates_take_well_under_a_step(real, capsys):
    for follower, base, persrm in real:
        ids = base.encode(" ".join(CORPUS) * 5, add_special_tokens=False)
        aligned, draw, seconds = follower.start(ids[:20]), random.Random(0), []
        for token in ids:
            candidates = [token, *draw.sample(ids, 9)]
            begun = time.perf_counter()
            aligned.candidate_changes(candidates)
            seconds.append(time.perf_counter() - begun)
            aligned.extend([token])
        milliseconds = statistics.median(seconds) * 1e3
        names = f"{len(base)} -> {len(persrm)} tokens"
        with capsys.disabled():
            print(f"\n{names}: {milliseconds:.2f} ms for 10 candidates, median of {len(ids)} steps")
        assert milliseconds < 20  # an order of magnitude of room: machines are shared


@pytest.mark.parametrize("persrm", ["llama", "bytewise"])
def test_the_number_of_unchanged_tokens_is_counted(persrm):
    base = TINY["bytewise"]()
    aligned, known = aligner_of("bytewise", persrm).start(base.encode("Hi")), []
    for number, token in enumerate(base.encode(CORPUS[1] + CORPUS[2], add_special_tokens=False)):
        aligned.extend([token])
        assert aligned.tokens[: aligned.num_unchanged] == known[: aligned.num_unchanged]
        assert aligned.num_unchanged >= len(known) - 8
        if number % 3:
            known = list(aligned.tokens)
            aligned.reset_unchanged()
            assert aligned.num_unchanged == len(known)


def test_encoded_windows_are_kept_up_to_so_many_characters(monkeypatch):
    monkeypatch.setattr(incremental_encoding, "_MAX_CACHED", 1000)
    encoder = incremental_encoding.WindowEncoder(TINY["llama"]().backend_tokenizer)
    for number in range(30):
        texts = [f"{number} " + "dog " * 50, f"cat {number}"]
        assert encoder(texts) == encoder(texts)
        assert sum(map(len, encoder._cache)) < 1000 + sum(map(len, texts))
    assert len(encoder._cache) > 2
