"""Where a text's tokens are those of two parts. No model runs."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import CORPUS, bytewise, lossy, sentencepiece, split_as_qwen
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from pad_vllm.text.word_starts import WordStarts

KINDS = {
    "bytewise": bytewise,
    "qwen": split_as_qwen,
    "gemma": functools.partial(sentencepiece, 0),
    "lossy": lossy,
}
PIECES = st.sampled_from(
    [
        *(
            "The dog",
            " barks",
            "barks ",
            " at",
            " ",
            "  ",
            "   ",
            " \n",
            "\n",
            "\n\n",
            "\t",
            "\r\n",
        ),
        *(
            "'",
            "'s",
            "'S",
            "'re",
            " 'll",
            ",",
            ". ",
            "!!",
            "--",
            "12345",
            " 1",
            "_x",
            "(a) ",
            "#",
            "<",
        ),
        *(
            "e\u0301",
            "\u0301",
            "犬",
            "🐕",
            "\ufffd",
            "\u00a0",
            "\u2003",
            "\x1c",
            "\x85",
            "▁",
            "Ġ",
            "Ċ",
        ),
        *("<|im_end|>", "<|im_", "</s>", "<0x20>", "aaaaaaa", *(text[:30] for text in CORPUS)),
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=4), min_size=1, max_size=9).map("".join)


@functools.cache
def starts_of(name):
    return WordStarts(KINDS[name]().backend_tokenizer)


def encoded(name, text, begin=0):
    """(id, span) of each token of text[begin:]."""
    encoding = KINDS[name]().backend_tokenizer.encode(text[begin:], add_special_tokens=False)
    spans = [(start + begin, end + begin) for start, end in encoding.offsets]
    return list(zip(encoding.ids, spans, strict=True))


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None, max_examples=150)
@given(text=TEXTS)
def test_the_tokens_are_those_of_what_is_before_a_start_and_of_what_follows(name, text):
    starts = starts_of(name)
    for end in range(len(text)):
        start = starts.last(text, end, blank_follows=text[end] == " ")
        if start is not None:
            assert 0 < start <= end
            assert encoded(name, text) == encoded(name, text[:start]) + encoded(name, text, start)


@pytest.mark.parametrize("name", ["bytewise", "qwen", "lossy"])
def test_a_word_starts_at_the_blank_before_it_and_not_in_other_white_space(name):
    last = starts_of(name).last
    assert last("a dog barks", 11, blank_follows=False) == 5
    assert last("a dog  barks", 12, blank_follows=False) == 5
    assert last("a dog", 5, blank_follows=True) == 5
    assert last("a dog", 4, blank_follows=False) == 1
    assert last("dog", 3, blank_follows=False) is None
    assert last(" dog", 4, blank_follows=False) is None
    assert last("dog\n b", 5, blank_follows=False) is None
    assert last("a " + "b" * 99, 101, blank_follows=False) is None  # too far to be worth a window


def test_a_character_that_a_token_joins_to_a_blank_starts_no_word():
    joined = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "▁": 2, "a▁": 3}, merges=[("a", "▁")]))
    joined.normalizer = normalizers.Replace(" ", "▁")
    starts = WordStarts(joined)
    assert joined.encode("a b").tokens == ["a▁", "b"]
    assert starts.last("a b", 3, blank_follows=False) is None
    assert starts.last("b b", 3, blank_follows=False) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"normalizer": normalizers.Prepend("▁")},
        {"normalizer": normalizers.Lowercase()},
        {"normalizer": normalizers.Replace("b", "▁")},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": pre_tokenizers.Metaspace()},
        {"pre_tokenizer": pre_tokenizers.Split(" ", "merged_with_previous")},
        {"pre_tokenizer": pre_tokenizers.Split(r"\w+", "isolated")},
        {"model": models.Unigram([("<unk>", 0.0), (" ", -1.0)], 0, byte_fallback=False)},
        {"model": models.BPE(vocab={" ": 0, "a": 1}, merges=[], dropout=0.5)},
        {"model": models.BPE(vocab={"a": 0}, merges=[])},
    ],
)
def test_no_word_starts_where_a_tokenizer_may_look_across_a_blank(changed):
    backend = Tokenizer(models.BPE(vocab={" ": 0, "a": 1, "b": 2, "Ġ": 3, "▁": 4}, merges=[]))
    assert WordStarts(backend).last("a b", 3, blank_follows=False) == 1
    for part, value in changed.items():
        setattr(backend, part, value)
    assert WordStarts(backend).last("a b", 3, blank_follows=False) is None


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("a b", normalized=False),
        AddedToken("<mask>", lstrip=True, normalized=False),
        AddedToken("<mask>", rstrip=True, normalized=False),
    ],
)
def test_no_word_starts_where_an_added_token_takes_blanks(token):
    backend = Tokenizer(models.BPE(vocab={" ": 0, "a": 1, "b": 2}, merges=[]))
    backend.decoder = decoders.Fuse()
    backend.add_tokens([token])
    assert WordStarts(backend).last("a b", 3, blank_follows=False) is None
