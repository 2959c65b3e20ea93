"""Keeps the tokens of a text that changes at its end: as if encoded whole, but only the end is encoded again.

In: a fast tokenizer's backend, splices of the text. Out: edits of its tokens. It does not know where the text
comes from, and imports neither torch nor vLLM.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from pad_vllm.text.common_start import common_start_length
from pad_vllm.text.word_starts import WordStarts

TokenChange = tuple[int, tuple[int, ...]]
"""(number of kept tokens, added tokens): the tokens become tokens[:number] + added."""

Span = tuple[int, int]
"""Begin and end of a token in characters of the text."""

_MIN_AGREEING = 4  # tokens in a row that a window must share with the known ones to be accepted
_FIRST_LOOK_BACK = 6  # tokens before the change where the first window begins; then 12, 24, ...
_MAX_CACHED = 2**18  # characters of cached windows, over all requests: some 10 MB with their tokens


class TextSplice(NamedTuple):
    """Replaces the end of a text."""

    num_kept: int
    """Characters that stay."""

    text: str
    """What follows them."""


class TokenEdit(NamedTuple):
    """What a splice of the text does to its tokens: those after the first `num_kept` are replaced."""

    splice: TextSplice
    num_kept: int
    ids: list[int]
    """Token ids after the kept ones."""

    spans: list[Span]
    """Their spans in the text from the character `begin` on."""

    begin: int = 0
    """Where the encoded window begins, if it is the start of a word."""


class WindowEncoder:
    """Encodes parts of texts, and caches what it encoded. Shared by all requests."""

    def __init__(self, backend: Any) -> None:
        """backend: a tokenizers.Tokenizer; truncation and padding are switched off."""
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.word_starts = WordStarts(backend)
        self._cache: dict[str, tuple[list[int], list[Span]]] = {}
        self._cached_characters = 0
        added = backend.get_added_tokens_decoder().values()
        self._longest_added = max((len(token.content) for token in added), default=0)
        self._strips_blanks = any(token.lstrip for token in added)
        anywhere = any(token.normalized for token in added) and backend.normalizer is not None
        starts = {re.escape(token.content[0]) for token in added if token.content}
        self._added_start = re.compile(
            "(?s:.)" if anywhere or not starts else f"[{''.join(starts)}]"
        )

    def safe_start(self, text: str, position: int) -> int:
        """`position` in characters, or an earlier one: where an added token may begin that only text after
        `position` completes.
        """
        start = self._added_start.search(text, max(0, position - self._longest_added), position)
        position = start.start() if start else position
        while self._strips_blanks and position and text[position - 1].isspace():
            position -= 1
        return position

    def __call__(self, texts: Sequence[str]) -> list[tuple[list[int], list[Span]]]:
        """Token ids and spans of each text, without special tokens."""
        if self._cached_characters > _MAX_CACHED:
            self._cache.clear()
            self._cached_characters = 0
        unknown = [text for text in dict.fromkeys(texts) if text not in self._cache]
        if unknown:
            encodings = self._backend.encode_batch(unknown, add_special_tokens=False)
            for text, encoding in zip(unknown, encodings, strict=True):
                self._cache[text] = (encoding.ids, encoding.offsets)
                self._cached_characters += len(text)
        return [self._cache[text] for text in texts]


class EncodedAnswer:
    """A text and its tokens, which after every edit are those of the whole text.

    Only a window of the text is encoded. Where it can begin at the start of a word (word_starts.py), its
    tokens replace the known ones. Otherwise it begins some tokens before the change, and its tokens replace
    the known ones from where four of them agree in ids and spans.
    """

    def __init__(self, encoder: WindowEncoder) -> None:
        self.text = ""
        self.ids: list[int] = []
        self.spans: list[Span] = []
        self._encoder = encoder

    def edits(self, splices: Sequence[TextSplice]) -> list[TokenEdit]:
        """What each splice of the text would do to the tokens. Changes nothing."""
        no_change = TextSplice(len(self.text), "")
        edits = {no_change: TokenEdit(no_change, len(self.ids), [], [])}
        edits.update(self._word_edits([s for s in dict.fromkeys(splices) if s not in edits]))
        look_back = _FIRST_LOOK_BACK
        while missing := [s for s in dict.fromkeys(splices) if s not in edits]:
            edits.update(self._window_edits(missing, look_back))
            look_back *= 2
        return [edits[splice] for splice in splices]

    def _word_edits(self, splices: list[TextSplice]) -> dict[TextSplice, TokenEdit]:
        """The edits by windows that begin at the start of a word, where there is one near the change."""
        starts: dict[tuple[int, bool], tuple[int, int] | None] = {}
        windows, texts = [], []
        for splice in splices:
            change = (splice.num_kept, splice.text.startswith(" "))
            if change not in starts:
                starts[change] = self._word_start(*change)
            if (start := starts[change]) is not None:
                windows.append((splice, *start))
                texts.append(self.text[start[0] : splice.num_kept] + splice.text)
        return {
            splice: TokenEdit(splice, num_kept, ids, spans, begin)
            for (splice, begin, num_kept), (ids, spans) in zip(
                windows, self._encoder(texts), strict=True
            )
        }

    def _word_start(self, change: int, blank_follows: bool) -> tuple[int, int] | None:
        """The last start of a word up to the character `change`, and the number of tokens before it."""
        begin = self._encoder.word_starts.last(self.text, change, blank_follows)
        if begin is None:
            return None
        return begin, bisect_right(self.spans, begin, key=lambda span: span[1])

    def _window_edits(
        self, splices: list[TextSplice], look_back: int
    ) -> dict[TextSplice, TokenEdit]:
        """The edits by windows that begin `look_back` tokens before each change, where those are accepted. A
        window from the text's start always is.
        """
        limits = [self._encoder.safe_start(self.text, splice.num_kept) for splice in splices]
        firsts = [self._window_start(limit, look_back) for limit in limits]
        begins = [self.spans[first][0] if first else 0 for first in firsts]
        texts = [
            self.text[begin : splice.num_kept] + splice.text
            for begin, splice in zip(begins, splices, strict=True)
        ]
        edits = {}
        for splice, limit, first, begin, (ids, window_spans) in zip(
            splices, limits, firsts, begins, self._encoder(texts), strict=True
        ):
            spans = [(start + begin, end + begin) for start, end in window_spans]
            agreement = self._agreement(first, ids, spans, limit) if first else (0, 0)
            if agreement:
                num_kept, in_window = agreement
                edits[splice] = TokenEdit(splice, num_kept, ids[in_window:], spans[in_window:])
        return edits

    def as_token_change(self, edit: TokenEdit) -> TokenChange:
        """The edit as a TokenChange, with as many tokens kept as stay the same."""
        num_equal = common_start_length(self.ids[edit.num_kept :], edit.ids)
        return edit.num_kept + num_equal, tuple(edit.ids[num_equal:])

    def apply(self, edit: TokenEdit) -> None:
        """Change text and tokens."""
        self.text = self.text[: edit.splice.num_kept] + edit.splice.text
        self.ids[edit.num_kept :] = edit.ids
        begin = edit.begin
        self.spans[edit.num_kept :] = [(start + begin, end + begin) for start, end in edit.spans]

    def _window_start(self, limit: int, look_back: int) -> int:
        """Index of a window's first token: `look_back` before the character `limit`, where a character
        begins.
        """
        first = bisect_right(self.spans, limit, key=lambda span: span[1]) - look_back
        while first > 0 and not _begins_character(self.spans, first):
            first -= 1
        return max(0, first)

    def _agreement(
        self, first: int, ids: list[int], spans: list[Span], limit: int
    ) -> tuple[int, int] | None:
        """Indices (known tokens, window) of the last of four equal tokens in a row, all before the character
        `limit`; None where there are none.
        """
        known, new, num_equal = first, 0, 0
        while known < len(self.ids) and new < len(ids) and self.spans[known][1] <= limit:
            known_span, new_span = self.spans[known], spans[new]
            equal = known_span == new_span and self.ids[known] == ids[new]
            if equal and (
                num_equal
                or (_begins_character(self.spans, known) and _begins_character(spans, new))
            ):
                num_equal += 1
                if num_equal == _MIN_AGREEING:
                    return known, new
                known, new = known + 1, new + 1
            else:
                num_equal = 0
                known, new = known + (known_span <= new_span), new + (new_span <= known_span)
        return None


def _begins_character(spans: list[Span], index: int) -> bool:
    """Whether a token begins where a character does: a character of several bytes may be several tokens."""
    return not index or spans[index - 1][1] <= spans[index][0]
