"""Keeps the PersRM's tokens in step with the base's, where the two tokenizers cut text differently.

In: two Transformers fast tokenizers, then one request's token ids as the base makes them. Out: the PersRM's
tokens of the same prompt and answer, and what each candidate would change in them. Knows nothing of
models or rewards; imports neither torch nor vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pad_vllm.text.change_cache import ChangeCache, RelativeChange
from pad_vllm.text.common_start import common_start_length
from pad_vllm.text.conversation_from_prompt import ChatTemplateReader, persrm_prompt_ids
from pad_vllm.text.incremental_encoding import EncodedAnswer, TextSplice, TokenChange, WindowEncoder
from pad_vllm.text.token_texts import TokenDecoder, UndecodedTail


class TokenAligner:
    """Translates requests from one base's tokens to one PersRM's."""

    def __init__(self, base: Any, persrm: Any, *, eos_token_ids: Iterable[int] = ()) -> None:
        """Learn both chat templates.

        Args:
            base: the base's fast tokenizer.
            persrm: the PersRM's.
            eos_token_ids: ids that end the base's answers, beside its tokenizer's end of sequence.

        Raises:
            ValueError: a tokenizer is not a fast one, or TokenDecoder does not know the base's decoder.
        """
        for role, tokenizer in (("base", base), ("PersRM", persrm)):
            _require_fast(role, tokenizer)
        self.same_tokens = _are_same(base, persrm)
        """Whether token ids mean the same in both, so that they are passed through."""
        self._persrm = persrm
        self._template = ChatTemplateReader(base)
        if self.same_tokens:
            return
        base_ends = {base.eos_token_id, self._template.end_of_turn, *eos_token_ids}
        end_of_turn = ChatTemplateReader(persrm).end_of_turn
        persrm_end = persrm.eos_token_id if end_of_turn is None else end_of_turn
        self._tokenizers = _TokenizerPair(
            decoder=TokenDecoder(base.backend_tokenizer),
            encoder=WindowEncoder(persrm.backend_tokenizer),
            ends=dict.fromkeys(base_ends - {None}, () if persrm_end is None else (persrm_end,)),
        )

    def start(self, prompt_ids: Sequence[int], preference: str = "") -> AlignedTokens:
        """Translate a request's prompt.

        Args:
            prompt_ids: the base's tokens of the prompt.
            preference: the user's preference in words, for the PersRM's prompt only.
        """
        if self.same_tokens and not preference:
            return AlignedTokens(prompt_ids)
        conversation = self._template.conversation_from_ids(prompt_ids)
        prompt = persrm_prompt_ids(self._persrm, conversation, preference)
        if self.same_tokens:
            return AlignedTokens(prompt)
        return _ReencodedTokens(prompt, self._tokenizers)


class AlignedTokens:
    """One request's tokens for the PersRM; this class where both models have the same tokens."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.tokens = list(prompt)
        """The PersRM's token ids: prompt and answer so far."""
        self.num_unchanged = 0
        """How many of the first tokens have not changed since `reset_unchanged`."""

    def reset_unchanged(self) -> None:
        """From here on `num_unchanged` counts anew: all tokens of now."""
        self.num_unchanged = len(self.tokens)

    def extend(self, ids: Sequence[int]) -> None:
        """Append tokens that the base generated."""
        self.tokens += ids

    def candidate_changes(self, ids: Sequence[int]) -> list[TokenChange]:
        """For each of the base's token ids: how `tokens` would change if it came next."""
        return [(len(self.tokens), (token,)) for token in ids]


@dataclass(frozen=True)
class _TokenizerPair:
    """What all requests share."""

    decoder: TokenDecoder  # of the base's tokens
    encoder: WindowEncoder  # to the PersRM's tokens
    ends: Mapping[
        int, tuple[int, ...]
    ]  # base tokens that end the turn -> the PersRM's tokens for it
    changes: ChangeCache = field(default_factory=ChangeCache)


class _Word(NamedTuple):
    """The end of an answer, from the start of its last word: it decides what a candidate changes."""

    text: str
    num_final: int  # of its characters, as in _ReencodedTokens
    tail: UndecodedTail


_NEW_WORD = "new word"
"""The context of a candidate that begins a word: it changes nothing before it, whatever that is."""


class _ReencodedTokens(AlignedTokens):
    """One request whose answer is decoded, and encoded again for the PersRM."""

    def __init__(self, prompt: Sequence[int], tokenizers: _TokenizerPair) -> None:
        """prompt: the PersRM's."""
        super().__init__(prompt)
        self._prompt_length = len(self.tokens)
        self._tokenizers, self._decoder = tokenizers, tokenizers.decoder
        self._answer = EncodedAnswer(tokenizers.encoder)
        self._num_final = 0  # characters of the answer that no later byte can change
        self._tail = self._decoder.initial_tail

    def extend(self, ids: Sequence[int]) -> None:
        text, tail = self._decoder.decode(self._tail, ids)
        [edit] = self._answer.edits([self._splice(text, tail)])
        num_kept, added = self._answer.as_token_change(edit)
        self._answer.apply(edit)
        self._num_final += len(text)
        self._tail = tail
        num_kept += self._prompt_length
        self.tokens[num_kept:] = added
        self.num_unchanged = min(self.num_unchanged, num_kept)

    def candidate_changes(self, ids: Sequence[int]) -> list[TokenChange]:
        cache, word = self._tokenizers.changes, self._last_word()
        of_word = {} if word is None else cache.known(word)
        of_new_word = cache.known(_NEW_WORD) if self._may_begin_word() else {}
        changes = {
            token: change
            for token in ids
            if (change := of_new_word.get(token) or of_word.get(token)) is not None
        }
        unknown = [token for token in dict.fromkeys(ids) if token not in changes]
        if unknown:
            changes.update(zip(unknown, self._encoded_changes(unknown, word), strict=True))
        length = len(self.tokens)
        return [(length - taken_back, added) for taken_back, added in map(changes.__getitem__, ids)]

    def _encoded_changes(self, ids: Sequence[int], word: _Word | None) -> list[RelativeChange]:
        """What each of the base's token ids changes, which is remembered where `word` decides it."""
        cache, ends = self._tokenizers.changes, self._tokenizers.ends
        splices = [
            self._splice(*self._decoder.decode(self._tail, () if token in ends else (token,)))
            for token in ids
        ]
        changes = []
        for token, edit in zip(ids, self._answer.edits(splices), strict=True):
            num_kept, added = self._answer.as_token_change(edit)
            change = len(self._answer.ids) - num_kept, ends.get(token, added)
            changes.append(change)
            if edit.begin == len(self._answer.text) and self._may_begin_word():
                cache.add(_NEW_WORD, token, change)
            elif word is not None:
                cache.add(word, token, change)
        return changes

    def _last_word(self) -> _Word | None:
        """The end of the answer; None where no start of a word is near."""
        text, final = self._answer.text, self._num_final
        begin = self._tokenizers.encoder.word_starts.last(text, final, blank_follows=False)
        return None if begin is None else _Word(text[begin:], final - begin, self._tail)

    def _may_begin_word(self) -> bool:
        """Whether a candidate that begins with a blank begins a word, and nothing before it is undecoded."""
        text, nothing = self._answer.text, UndecodedTail(b"", 0)
        return self._tail == nothing and self._tokenizers.encoder.word_starts.ends_before_blank(
            text
        )

    def _splice(self, text: str, tail: UndecodedTail) -> TextSplice:
        """The change of the answer's text by newly final `text` and a new tail."""
        old = self._answer.text[self._num_final :]
        new = text + self._decoder.pending_text(tail)
        num_equal = common_start_length(old, new)
        return TextSplice(self._num_final + num_equal, new[num_equal:])


def _require_fast(role: str, tokenizer: Any) -> None:
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError(
            f"the {role}'s tokenizer is a {type(tokenizer).__name__}; accepted: Transformers' fast "
            "tokenizers. Use a checkpoint with a tokenizer.json."
        )


def _are_same(base: Any, persrm: Any) -> bool:
    """Whether every token, and every prompt, is the same to both."""
    return base is persrm or (
        base.chat_template == persrm.chat_template
        and _added_tokens(base) == _added_tokens(persrm)
        and base.special_tokens_map == persrm.special_tokens_map
        and base.get_vocab() == persrm.get_vocab()
    )


def _added_tokens(tokenizer: Any) -> dict[int, tuple[str, bool]]:
    """Id -> text, and whether it is special."""
    return {i: (t.content, t.special) for i, t in tokenizer.added_tokens_decoder.items()}
