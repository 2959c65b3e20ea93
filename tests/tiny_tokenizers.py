"""Small tokenizers of every kind that is followed, trained on the spot on a few lines."""

from __future__ import annotations

import functools
import json

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = (
    "The dog barks at the other dog, and 12345 cats aren't barking; they weren't there.",
    "A naïve café-goer's   résumé:\n\n- tabs\tand 1000000 blanks    here\n\n\n",
    "日本語のテキスト と 日本の犬。 Ελληνικά, русский текст, ещё текст.",
    "def bark(dog):\n    return dog.bark(times=100)\n\n    # the other dog\n",
)
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BLANK = decoders.Replace("▁", " ")


def trained(pre_tokenizer, normalizer, alphabet=()):
    """Vocabulary and merges of a BPE on CORPUS."""
    backend = Tokenizer(models.BPE())
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False, initial_alphabet=list(alphabet)
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    state = json.loads(backend.to_str())["model"]
    return state["vocab"], [tuple(merge) for merge in state["merges"]]


def wrapped(backend, chat_template, **special):
    names = {"bos_token": "<s>", "eos_token": "</s>", **special}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.add_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    tokenizer.add_tokens([AddedToken("\n" * n, normalized=False) for n in (2, 3, 4)])
    tokenizer.chat_template = chat_template
    return tokenizer


QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@functools.cache
def split_as_qwen():
    """ByteLevel with Qwen's own words."""
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    vocab, merges = trained(cut, normalizers.NFC(), pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer, backend.decoder = cut, decoders.ByteLevel()
    backend.normalizer = normalizers.NFC()
    return wrapped(backend, CHAT)


@functools.cache
def bytewise(prefix=False, chat_template=CHAT):
    """ByteLevel, as GPT-2, Llama-3 and Qwen: words are cut first, digits by three."""
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix),
        ]
    )
    vocab, merges = trained(cut, None, pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer, backend.decoder = cut, decoders.ByteLevel()
    backend.normalizer = normalizers.NFC()
    return wrapped(backend, chat_template)


@functools.cache
def sentencepiece(prepend, chat_template=CHAT):
    """Byte fallback and no words: as Gemma, or with a blank before the text, as Llama-2."""
    steps = [normalizers.Prepend("▁")] * prepend + [normalizers.Replace(" ", "▁")]
    vocab, merges = trained(None, normalizers.Sequence(steps))
    for token in ("<unk>", *(f"<0x{byte:02X}>" for byte in range(256))):
        vocab[token] = len(vocab)
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(steps)
    strip = [decoders.Strip(" ", 1, 0)] * prepend
    backend.decoder = decoders.Sequence([BLANK, decoders.ByteFallback(), decoders.Fuse(), *strip])
    return wrapped(backend, chat_template, unk_token="<unk>")


@functools.cache
def lossy():
    """Cuts at blanks and knows few characters: the others are <unk>, neighbours as one."""
    vocab = {token: index for index, token in enumerate(["<unk>", *"abcdehnorst '"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True))
    backend.decoder = decoders.Fuse()
    return wrapped(backend, CHAT, unk_token="<unk>")
