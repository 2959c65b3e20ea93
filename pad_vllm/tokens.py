"""Keeps the PersRM's tokens in step with the base's, where the two cut text differently.

In: two Transformers fast tokenizers, then one request's token ids as the base makes them. Out: the PersRM's
tokens of the same prompt and answer, and what each candidate would change in them. Only the end of an answer
is encoded again at a step. Knows nothing of models, rewards or vLLM; imports neither it nor torch.
"""

from __future__ import annotations

import codecs
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from pad_vllm.conversation import Template, prompt_ids
from pad_vllm.wording import show

Change = tuple[int, tuple[int, ...]]
"""(keep, added): the tokens become tokens[:keep] + added."""

_MEET = 4  # tokens that a window and the known ones have in common before it is believed
_BACK = 6  # tokens before the change that the first window begins at; the next begin at 12, 24, ...
_MEMO = 4096  # windows remembered over all requests: the candidate that is taken, common endings


class Reader:
    """One for a pair of tokenizers.

    Raises ValueError where a tokenizer is of a kind whose tokens cannot be followed.
    """

    def __init__(self, base: Any, persrm: Any, *, ends: Iterable[int] = ()) -> None:
        """ends: tokens that end the base's answers beside its tokenizer's end of sequence."""
        for role, tokenizer in (("base", base), ("PersRM", persrm)):
            _require_fast(role, tokenizer)
        self.same = _same(base, persrm)
        """Token ids mean the same in both, so they are passed through."""
        self._persrm = persrm
        self._template = Template(base)
        if self.same:
            return
        self._encoder = _Encoder(persrm.backend_tokenizer)
        self._pieces = Pieces(base.backend_tokenizer)
        self._ends = frozenset({base.eos_token_id, self._template.end, *ends} - {None})
        end = Template(persrm).end
        self._end = persrm.eos_token_id if end is None else end

    def open(self, prompt_ids: Sequence[int], preference: str = "") -> Reading:
        """A request whose prompt the base has as these tokens; preference: the user's, in words."""
        if self.same and not preference:
            return Reading(prompt_ids)
        prompt = self._prompt(prompt_ids, preference)
        if self.same:
            return Reading(prompt)
        end = () if self._end is None else (self._end,)
        return _Translation(prompt, self._pieces, self._encoder, dict.fromkeys(self._ends, end))

    def _prompt(self, ids: Sequence[int], preference: str) -> list[int]:
        return prompt_ids(self._persrm, self._template.conversation(ids), preference)


class Reading:
    """One request: as here where both models have the same tokens."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.tokens = list(prompt)
        """The PersRM's: prompt and answer so far."""

    def extend(self, ids: Sequence[int]) -> None:
        """The base tokens generated since."""
        self.tokens += ids

    def candidates(self, ids: Sequence[int]) -> list[Change]:
        """For each base token what `tokens` would be if it came next."""
        return [(len(self.tokens), (token,)) for token in ids]


class _Translation(Reading):
    """One request whose answer is decoded, and encoded again for the PersRM."""

    def __init__(
        self,
        prompt: Sequence[int],
        pieces: Pieces,
        encoder: _Encoder,
        ends: dict[int, tuple[int, ...]],
    ) -> None:
        super().__init__(prompt)
        self._prompt = len(self.tokens)
        self._pieces = pieces
        self._ends = ends  # base tokens that end the turn -> the PersRM's
        self._answer = _Answer(encoder)
        self._settled = 0  # characters of the answer that no later byte can change
        self._tail = pieces.start

    def extend(self, ids: Sequence[int]) -> None:
        text, tail = self._pieces.add(self._tail, ids)
        [edit] = self._answer.edits([self._splice(text, tail)])
        keep, added = self._answer.change(edit)
        self._answer.apply(edit)
        self._settled += len(text)
        self._tail = tail
        del self.tokens[self._prompt + keep :]
        self.tokens += added

    def candidates(self, ids: Sequence[int]) -> list[Change]:
        splices = [
            self._splice(*self._pieces.add(self._tail, () if token in self._ends else (token,)))
            for token in ids
        ]
        changes = []
        for token, edit in zip(ids, self._answer.edits(splices), strict=True):
            if token in self._ends:
                changes.append((len(self.tokens), self._ends[token]))
            else:
                keep, added = self._answer.change(edit)
                changes.append((self._prompt + keep, added))
        return changes

    def _splice(self, text: str, tail: Tail) -> _Splice:
        """Where the answer's text changes, and what then follows there."""
        old = self._answer.text[self._settled :]
        new = text + self._pieces.shown(tail)
        alike = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False))
        )
        return _Splice(self._settled + alike, new[alike:])


class Tail(NamedTuple):
    """What of an answer's end is not text yet."""

    run: bytes
    strip: int  # blanks that decoding would still drop: only an answer's first


class Pieces:
    """What each token of a tokenizer adds to a text, as its own decoder has it.

    Two kinds: every token is bytes (ByteLevel), or a token is text or, where text fails, one byte.
    """

    def __init__(self, backend: Any) -> None:
        parts = _decoder(backend)
        self._name = backend.id_to_token
        self._special = {i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        self._bytewise = parts[0]["type"] == "ByteLevel"
        self._replaced = [
            (part["pattern"]["String"], part["content"])
            for part in parts
            if part["type"] == "Replace"
        ]
        self._fallback = any(part["type"] == "ByteFallback" for part in parts)
        strip: dict[str, Any] = parts[-1] if parts[-1]["type"] == "Strip" else {}
        self._blank = strip.get("content", "")
        self._known: dict[int, str | bytes] = {}
        self.start = Tail(b"", strip.get("start", 0))
        """Before the first token."""

    def of(self, token: int) -> str | bytes:
        """Empty for special tokens and for those that do not exist."""
        piece = self._known.get(token)
        if piece is None:
            piece = self._known[token] = self._piece(token)
        return piece

    def add(self, tail: Tail, tokens: Iterable[int]) -> tuple[str, Tail]:
        """The text that tokens settle, and the new tail."""
        if self._bytewise:
            data = b"".join([tail.run, *map(self.of, tokens)])  # type: ignore[list-item]
            text, used = codecs.utf_8_decode(data, "replace", False)
            return text, Tail(data[used:], 0)
        text, (run, strip) = "", tail
        for piece in map(self.of, tokens):
            if isinstance(piece, bytes):
                run += piece
            elif piece:
                more, strip = self._stripped(_characters(run, final=True) + piece, strip)
                text, run = text + more, b""
        return text, Tail(run, strip)

    def shown(self, tail: Tail) -> str:
        """The complete characters of a tail: a later byte that is wrong spoils them all."""
        if self._bytewise or not tail.run:
            return ""
        return self._stripped(_characters(tail.run, final=False), tail.strip)[0]

    def _piece(self, token: int) -> str | bytes:
        # Names are asked for as 32 bits, and anything else would raise.
        name = self._name(token) if 0 <= token < 2**32 and token not in self._special else None
        if name is None:
            return b""
        if self._bytewise:
            try:
                return bytes(_BYTES[character] for character in name)
            except KeyError:  # an added token, in plain characters
                return name.encode()
        for old, new in self._replaced:
            name = name.replace(old, new)
        byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name) if self._fallback else None
        return bytes.fromhex(byte[1]) if byte else name

    def _stripped(self, text: str, strip: int) -> tuple[str, int]:
        """A text that follows what is settled, without blanks that decoding drops."""
        blanks = len(text[:strip]) - len(text[:strip].lstrip(self._blank)) if strip else 0
        return text[blanks:], 0 if len(text) > blanks else strip - blanks


class _Splice(NamedTuple):
    place: int  # characters that stay
    text: str  # what follows them


class _Edit(NamedTuple):
    """New tokens from the one at `cut`, spans in characters of the new text."""

    splice: _Splice
    cut: int
    ids: list[int]
    spans: list[tuple[int, int]]


class _Encoder:
    """A tokenizer's tokens of a text with their places, remembered."""

    def __init__(self, backend: Any) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._known: dict[str, tuple[list[int], list[tuple[int, int]]]] = {}
        added = backend.get_added_tokens_decoder().values()
        self._reach = max((len(token.content) for token in added), default=0)
        self._blanks = any(token.lstrip for token in added)
        anywhere = any(token.normalized for token in added) and backend.normalizer is not None
        begins = {re.escape(token.content[0]) for token in added if token.content}
        self._begin = re.compile("(?s:.)" if anywhere or not begins else f"[{''.join(begins)}]")

    def sound(self, text: str, place: int) -> int:
        """The place before which no added token begins that other text from `place` on completes."""
        found = self._begin.search(text, max(0, place - self._reach), place)
        place = found.start() if found else place
        while self._blanks and place and text[place - 1].isspace():
            place -= 1
        return place

    def __call__(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        if len(self._known) > _MEMO:
            self._known.clear()
        unknown = [text for text in dict.fromkeys(texts) if text not in self._known]
        if unknown:
            made = self._backend.encode_batch(unknown, add_special_tokens=False)
            for text, one in zip(unknown, made, strict=True):
                self._known[text] = (one.ids, one.offsets)
        return [self._known[text] for text in texts]


class _Answer:
    """A text and its tokens, equal to the encoding of the whole text after every edit.

    A window of text that begins some tokens before the change is encoded instead. Where it has the
    same tokens at the same places as are known, both go on alike, and the rest is the window's.
    """

    def __init__(self, encoder: _Encoder) -> None:
        self.text = ""
        self.ids: list[int] = []
        self.spans: list[tuple[int, int]] = []
        self._encoder = encoder

    def edits(self, splices: Sequence[_Splice]) -> list[_Edit]:
        """The tokens that each splice of the text would make."""
        nothing = _Splice(len(self.text), "")
        found = {nothing: _Edit(nothing, len(self.ids), [], [])}
        back = _BACK
        while missing := [s for s in dict.fromkeys(splices) if s not in found]:
            sound = [self._encoder.sound(self.text, splice.place) for splice in missing]
            firsts = [self._first(place, back) for place in sound]
            begins = [self.spans[first][0] if first else 0 for first in firsts]
            texts = [self.text[b : s.place] + s.text for b, s in zip(begins, missing, strict=True)]
            windows = self._encoder(texts)
            for s, place, first, begin, window in zip(
                missing, sound, firsts, begins, windows, strict=True
            ):
                ids, spans = window[0], [(b + begin, e + begin) for b, e in window[1]]
                met = self._meet(first, ids, spans, place) if first else (0, 0)
                if met:
                    found[s] = _Edit(s, met[0], ids[met[1] :], spans[met[1] :])
            back *= 2
        return [found[splice] for splice in splices]

    def change(self, edit: _Edit) -> Change:
        """An edit as the PersRM's cache needs it: as many tokens kept as stay the same."""
        alike = 0
        for old, new in zip(self.ids[edit.cut :], edit.ids, strict=False):
            if old != new:
                break
            alike += 1
        return edit.cut + alike, tuple(edit.ids[alike:])

    def apply(self, edit: _Edit) -> None:
        self.text = self.text[: edit.splice.place] + edit.splice.text
        self.ids[edit.cut :] = edit.ids
        self.spans[edit.cut :] = edit.spans

    def _first(self, place: int, back: int) -> int:
        """The token that a window begins with: `back` before a place, at a character's beginning."""
        first = bisect_right(self.spans, place, key=lambda span: span[1]) - back
        while first > 0 and not _clean(self.spans, first):
            first -= 1
        return max(0, first)

    def _meet(
        self, first: int, ids: list[int], spans: list[tuple[int, int]], place: int
    ) -> tuple[int, int] | None:
        """Where known and window tokens are the same _MEET times, all before a place."""
        known, new, alike = first, 0, 0
        while known < len(self.ids) and new < len(ids) and self.spans[known][1] <= place:
            at, other = self.spans[known], spans[new]
            same = at == other and self.ids[known] == ids[new]
            if same and (alike or (_clean(self.spans, known) and _clean(spans, new))):
                alike += 1
                if alike == _MEET:
                    return known, new
                known, new = known + 1, new + 1
            else:
                alike = 0
                known, new = known + (at <= other), new + (other <= at)
        return None


def _clean(spans: list[tuple[int, int]], index: int) -> bool:
    """Whether a token begins where a character does; one of many bytes may be many tokens."""
    return not index or spans[index - 1][1] <= spans[index][0]


def _characters(run: bytes, *, final: bool) -> str:
    """A run of byte tokens as decoding has it: one wrong byte makes each of them U+FFFD."""
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


def _decoder(backend: Any) -> list[dict[str, Any]]:
    """The steps of a tokenizer's decoder, if `Pieces` knows them."""
    state: Any = json.loads(backend.decoder.__getstate__()) if backend.decoder else {"type": "none"}
    parts: list[dict[str, Any]] = state.get("decoders", [state])
    kinds = "".join(f"{part['type']} " for part in parts)
    known = re.fullmatch(r"ByteLevel |(Replace )*(ByteFallback )?Fuse (Strip )?", kinds)
    patterns = [part["pattern"] for part in parts if part["type"] == "Replace"]
    if not known or parts[-1].get("stop") or not all("String" in one for one in patterns):
        raise ValueError(
            f"the base's tokenizer decodes by {show(parts)}; accepted: ByteLevel, or Replace, "
            "ByteFallback, Fuse and Strip at the start, in this order. Use a PersRM with the base's "
            "own tokenizer."
        )
    return parts


def _require_fast(role: str, tokenizer: Any) -> None:
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError(
            f"the {role}'s tokenizer is a {type(tokenizer).__name__}; accepted: Transformers' fast "
            "tokenizers. Use a checkpoint with a tokenizer.json."
        )


def _same(base: Any, persrm: Any) -> bool:
    """Whether every token, and every prompt, is the same to both."""
    return base is persrm or (
        base.chat_template == persrm.chat_template
        and _added(base) == _added(persrm)
        and base.special_tokens_map == persrm.special_tokens_map
        and base.get_vocab() == persrm.get_vocab()
    )


def _added(tokenizer: Any) -> dict[int, tuple[str, bool]]:
    return {i: (t.content, t.special) for i, t in tokenizer.added_tokens_decoder.items()}
