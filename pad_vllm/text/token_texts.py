"""The text that each of a base's tokens adds, as its own decoder gives it; tokens may split characters.

In: a fast tokenizer's backend, token ids. Out: text that is final, and bytes that are not decoded yet. Knows
no other tokenizer, and imports neither torch nor vLLM.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from pad_vllm.wording import short_repr


class UndecodedTail(NamedTuple):
    """The end of an answer that is not final text yet."""

    pending_bytes: bytes
    """Of tokens whose characters are not complete."""

    blanks_to_strip: int
    """How many leading blanks of the answer decoding would still drop."""


class TokenDecoder:
    """Decodes a tokenizer's tokens one by one.

    It knows two kinds of decoders: every token is bytes (ByteLevel), or a token is text or one byte (byte
    fallback).
    """

    def __init__(self, backend: Any) -> None:
        """backend: a tokenizers.Tokenizer. Raises ValueError for a decoder of another kind."""
        steps = _decoder_steps(backend)
        self._token_name = backend.id_to_token
        self._special = {i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        self._bytewise = steps[0]["type"] == "ByteLevel"
        self._replacements = [
            (step["pattern"]["String"], step["content"])
            for step in steps
            if step["type"] == "Replace"
        ]
        self._has_byte_tokens = any(step["type"] == "ByteFallback" for step in steps)
        strip: dict[str, Any] = steps[-1] if steps[-1]["type"] == "Strip" else {}
        self._blank = strip.get("content", "")
        self._cache: dict[int, str | bytes] = {}
        self.initial_tail = UndecodedTail(b"", strip.get("start", 0))
        """The tail before the first token."""

    def token_text(self, token: int) -> str | bytes:
        """A token's text or bytes; empty for special tokens and for ids that do not exist."""
        text = self._cache.get(token)
        if text is None:
            text = self._cache[token] = self._decode_token(token)
        return text

    def decode(self, tail: UndecodedTail, tokens: Iterable[int]) -> tuple[str, UndecodedTail]:
        """The text that becomes final with `tokens`, and the new tail."""
        if self._bytewise:
            data = b"".join([tail.pending_bytes, *map(self.token_text, tokens)])  # type: ignore[list-item]
            text, num_decoded = codecs.utf_8_decode(data, "replace", False)
            return text, UndecodedTail(data[num_decoded:], 0)
        text, (pending, strip) = "", tail
        for piece in map(self.token_text, tokens):
            if isinstance(piece, bytes):
                pending += piece
            elif piece:
                added, strip = self._stripped(_decode_run(pending, final=True) + piece, strip)
                text, pending = text + added, b""
        return text, UndecodedTail(pending, strip)

    def pending_text(self, tail: UndecodedTail) -> str:
        """The complete characters of a tail. Not final: a wrong byte after them makes them all U+FFFD."""
        if self._bytewise or not tail.pending_bytes:
            return ""
        text = _decode_run(tail.pending_bytes, final=False)
        return self._stripped(text, tail.blanks_to_strip)[0]

    def _decode_token(self, token: int) -> str | bytes:
        # id_to_token takes unsigned 32-bit ids, and raises on any other.
        exists = 0 <= token < 2**32 and token not in self._special
        name = self._token_name(token) if exists else None
        if name is None:
            return b""
        if self._bytewise:
            try:
                return bytes(_BYTES[character] for character in name)
            except KeyError:  # an added token, in plain characters
                return name.encode()
        for old, new in self._replacements:
            name = name.replace(old, new)
        byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name) if self._has_byte_tokens else None
        return bytes.fromhex(byte[1]) if byte else name

    def _stripped(self, text: str, strip: int) -> tuple[str, int]:
        """A text that follows the final one, without blanks that decoding drops; and how many of the next
        blanks it still drops.
        """
        blanks = len(text[:strip]) - len(text[:strip].lstrip(self._blank)) if strip else 0
        return text[blanks:], 0 if len(text) > blanks else strip - blanks


def _decode_run(run: bytes, *, final: bool) -> str:
    """The text of byte tokens in a row: one wrong byte makes each of them U+FFFD."""
    try:
        return codecs.utf_8_decode(run, "strict", final)[0]
    except UnicodeDecodeError:
        return "\ufffd" * len(run)


def _byte_characters() -> dict[str, int]:
    """ByteLevel's characters: printable bytes are themselves, the others follow from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTES = _byte_characters()


def _decoder_steps(backend: Any) -> list[dict[str, Any]]:
    """The steps of a tokenizer's decoder. Raises ValueError where TokenDecoder does not know them."""
    state: Any = json.loads(backend.decoder.__getstate__()) if backend.decoder else {"type": "none"}
    steps: list[dict[str, Any]] = state.get("decoders", [state])
    kinds = "".join(f"{step['type']} " for step in steps)
    known = re.fullmatch(r"ByteLevel |(Replace )*(ByteFallback )?Fuse (Strip )?", kinds)
    patterns = [step["pattern"] for step in steps if step["type"] == "Replace"]
    if not known or steps[-1].get("stop") or not all("String" in pattern for pattern in patterns):
        raise ValueError(
            f"the base's tokenizer decodes by {short_repr(steps)}; accepted: ByteLevel, or Replace, "
            "ByteFallback, Fuse and Strip at the start, in this order. Use a PersRM with the base's "
            "own tokenizer."
        )
    return steps
