"""Where a tokenizer's encoding of a text is that of two parts: at a blank after a printable ASCII character.

In: a fast tokenizer's backend, texts. Out: positions at which the text's tokens are the tokens of what stands
before, then the tokens of what follows, each as if encoded alone and whatever the other part is. That is so
where no token of the vocabulary has a blank after this character, so that BPE joins nothing across, and where
nothing before BPE looks across either: normalizers and pre-tokenizers that are known here. Any other
tokenizer has no such positions. It does not encode, and imports neither torch nor vLLM.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

_PRINTABLE = frozenset(map(chr, range(0x21, 0x7F)))
_LONGEST_WORD = 48  # characters: a longer part is not worth a search

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KNOWN_PATTERNS = frozenset({_LLAMA_3, _LLAMA_3.replace("{1,3}", ""), r"\p{N}{1,3}"})
"""Regular expressions of Llama 3, Qwen and others whose matches have a blank at their start, or among white
space only; and whose matches before a blank are those before the end of the text.
"""


class WordStarts:
    """Finds the positions in texts for one tokenizer."""

    def __init__(self, backend: Any) -> None:
        """backend: a tokenizers.Tokenizer."""
        self._before_blank = _characters_before_blank(backend)

    def ends_before_blank(self, text: str) -> bool:
        """Whether a blank after `text` would start a word."""
        return text[-1:] in self._before_blank

    def last(self, text: str, end: int, blank_follows: bool) -> int | None:
        """The last such position in text[:end], or `end` itself if a blank follows; None where there is none
        near.
        """
        if blank_follows and self.ends_before_blank(text[:end]):
            return end
        lowest = max(1, end - _LONGEST_WORD)
        while (end := text.rfind(" ", lowest, end)) >= 0:
            if text[end - 1] in self._before_blank:
                return end
        return None


def _characters_before_blank(backend: Any) -> frozenset[str]:
    """The characters after which a blank begins a part of its own."""
    normalizers = _steps(backend.normalizer, "normalizers")
    pre_tokenizers = _steps(backend.pre_tokenizer, "pretokenizers")
    replaced = any(step["type"] == "Replace" for step in normalizers)
    if not (
        _is_plain_bpe(backend.model)
        and all(map(_normalizes_alone, normalizers))
        and all(_cuts_before_blanks(step, replaced) for step in pre_tokenizers)
    ):
        return frozenset()
    bytewise = any(step["type"] == "ByteLevel" for step in pre_tokenizers)
    blank = "Ġ" if bytewise else "▁" if replaced else " "
    added = backend.get_added_tokens_decoder().values()
    if any(t.lstrip or t.rstrip or " " in t.content or blank in t.content for t in added):
        return frozenset()
    names = backend.get_vocab(with_added_tokens=False)
    joined = {
        a for name in names if blank in name for a, b in itertools.pairwise(name) if b == blank
    }
    return _PRINTABLE - joined if blank in names else frozenset()


def _steps(part: Any, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer; name: of the list in a sequence of them."""
    state: dict[str, Any] = json.loads(part.__getstate__()) if part else {name: []}
    steps: list[dict[str, Any]] = state.get(name, [state])
    return steps


def _is_plain_bpe(model: Any) -> bool:
    return type(model).__name__ == "BPE" and not (
        model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix
    )


def _normalizes_alone(step: dict[str, Any]) -> bool:
    """Whether a normalizer changes what is before a blank, and what follows, as if alone."""
    if step["type"] == "Replace":
        return bool((step["pattern"], step["content"]) == ({"String": " "}, "▁"))
    return bool(step["type"] == "NFC")


def _cuts_before_blanks(step: dict[str, Any], replaced: bool) -> bool:
    """Whether a pre-tokenizer cuts what is before a blank, and what follows, as if alone.

    replaced: there are no blanks left, as the normalizer replaced them.
    """
    if step["type"] == "ByteLevel":
        return not step["add_prefix_space"]
    if step["type"] != "Split":
        return bool(step["type"] == "Digits")
    if replaced:
        return bool(step["pattern"] == {"String": " "})
    known = step["pattern"].get("Regex") in _KNOWN_PATTERNS
    return known and step["behavior"] == "Isolated" and not step["invert"]
