"""A text that changes at its end, and its tokens: as if encoded whole, but only the end is encoded again.

In: a fast tokenizer's backend, splices of the text. Out: edits of its tokens. Knows nothing of where the text
comes from, and imports neither torch nor vLLM.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

TokenChange = tuple[int, tuple[int, ...]]
"""(keep, added): the tokens become tokens[:keep] + added."""

_MEET = 4  # tokens in a row that a window must share with the known ones to be accepted
_BACK = 6  # tokens before the change that the first window begins at; the next begin at 12, 24, ...
_MEMO = 2**18  # characters of windows memoised, over all requests: some 10 MB with their tokens


class TextSplice(NamedTuple):
    """A text's end, replaced."""

    num_kept: int  # characters that stay
    text: str  # what follows them


class TokenEdit(NamedTuple):
    """New tokens from the one at `cut`, spans in characters of the new text."""

    splice: TextSplice
    num_kept: int
    ids: list[int]
    spans: list[tuple[int, int]]


class WindowEncoder:
    """Encodes texts as (ids, spans in characters), memoised."""

    def __init__(self, backend: Any) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._known: dict[str, tuple[list[int], list[tuple[int, int]]]] = {}
        self._size = 0  # characters in it
        added = backend.get_added_tokens_decoder().values()
        self._reach = max((len(token.content) for token in added), default=0)
        self._blanks = any(token.lstrip for token in added)
        anywhere = any(token.normalized for token in added) and backend.normalizer is not None
        begins = {re.escape(token.content[0]) for token in added if token.content}
        self._begin = re.compile("(?s:.)" if anywhere or not begins else f"[{''.join(begins)}]")

    def safe_start(self, text: str, place: int) -> int:
        """`place`, or an earlier one where an added token may begin that text after `place` completes."""
        begin = self._begin.search(text, max(0, place - self._reach), place)
        place = begin.start() if begin else place
        while self._blanks and place and text[place - 1].isspace():
            place -= 1
        return place

    def __call__(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        if self._size > _MEMO:
            self._known.clear()
            self._size = 0
        unknown = [text for text in dict.fromkeys(texts) if text not in self._known]
        if unknown:
            made = self._backend.encode_batch(unknown, add_special_tokens=False)
            for text, encoding in zip(unknown, made, strict=True):
                self._known[text] = (encoding.ids, encoding.offsets)
                self._size += len(text)
        return [self._known[text] for text in texts]


class EncodedAnswer:
    """A text and its tokens, equal to the encoding of the whole text after every edit.

    Encoded is a window of text that begins some tokens before the change. From where four of its tokens
    agree with the known ones in ids and spans, its tokens replace the known ones.
    """

    def __init__(self, encoder: WindowEncoder) -> None:
        self.text = ""
        self.ids: list[int] = []
        self.spans: list[tuple[int, int]] = []
        self._encoder = encoder

    def edits(self, splices: Sequence[TextSplice]) -> list[TokenEdit]:
        """The tokens that each splice of the text would make."""
        nothing = TextSplice(len(self.text), "")
        made = {nothing: TokenEdit(nothing, len(self.ids), [], [])}
        back = _BACK
        while missing := [s for s in dict.fromkeys(splices) if s not in made]:
            sound = [self._encoder.safe_start(self.text, splice.num_kept) for splice in missing]
            firsts = [self._first(place, back) for place in sound]
            begins = [self.spans[first][0] if first else 0 for first in firsts]
            texts = [
                self.text[b : s.num_kept] + s.text for b, s in zip(begins, missing, strict=True)
            ]
            windows = self._encoder(texts)
            for s, place, first, begin, window in zip(
                missing, sound, firsts, begins, windows, strict=True
            ):
                ids, spans = window[0], [(b + begin, e + begin) for b, e in window[1]]
                met = self._meet(first, ids, spans, place) if first else (0, 0)
                if met:
                    made[s] = TokenEdit(s, met[0], ids[met[1] :], spans[met[1] :])
            back *= 2
        return [made[splice] for splice in splices]

    def as_token_change(self, edit: TokenEdit) -> TokenChange:
        """An edit as (keep, added), with as many tokens kept as stay the same."""
        alike = 0
        for old, new in zip(self.ids[edit.num_kept :], edit.ids, strict=False):
            if old != new:
                break
            alike += 1
        return edit.num_kept + alike, tuple(edit.ids[alike:])

    def apply(self, edit: TokenEdit) -> None:
        self.text = self.text[: edit.splice.num_kept] + edit.splice.text
        self.ids[edit.num_kept :] = edit.ids
        self.spans[edit.num_kept :] = edit.spans

    def _first(self, place: int, back: int) -> int:
        """The token that a window begins with: `back` before `place`, at the start of a character."""
        first = bisect_right(self.spans, place, key=lambda span: span[1]) - back
        while first > 0 and not _clean(self.spans, first):
            first -= 1
        return max(0, first)

    def _meet(
        self, first: int, ids: list[int], spans: list[tuple[int, int]], place: int
    ) -> tuple[int, int] | None:
        """Indices (known, window) where both have had _MEET equal tokens in a row, all before `place`."""
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
    """Whether a token begins where a character does: a character of several bytes may be several tokens."""
    return not index or spans[index - 1][1] <= spans[index][0]
