"""Keeps the PersRM's tokens in step with the base's, where the two tokenizers cut text differently.

In: two Transformers fast tokenizers, then one request's token ids as the base makes them. Out: the PersRM's
tokens of the same prompt and answer, and what each candidate would change in them. Knows nothing of
models or rewards; imports neither torch nor vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

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
        self._encoder = WindowEncoder(persrm.backend_tokenizer)
        self._decoder = TokenDecoder(base.backend_tokenizer)
        base_ends = {base.eos_token_id, self._template.end_of_turn, *eos_token_ids}
        self._base_ends = frozenset(base_ends - {None})
        end_of_turn = ChatTemplateReader(persrm).end_of_turn
        self._persrm_end = persrm.eos_token_id if end_of_turn is None else end_of_turn

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
        end: tuple[int, ...] = () if self._persrm_end is None else (self._persrm_end,)
        ends = dict.fromkeys(self._base_ends, end)
        return _ReencodedTokens(prompt, self._decoder, self._encoder, ends)


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


class _ReencodedTokens(AlignedTokens):
    """One request whose answer is decoded, and encoded again for the PersRM."""

    def __init__(
        self,
        prompt: Sequence[int],
        decoder: TokenDecoder,
        encoder: WindowEncoder,
        ends: dict[int, tuple[int, ...]],
    ) -> None:
        """prompt: the PersRM's; ends: base tokens that end the turn -> the PersRM's tokens for it."""
        super().__init__(prompt)
        self._prompt_length = len(self.tokens)
        self._decoder = decoder
        self._ends = ends
        self._answer = EncodedAnswer(encoder)
        self._num_final = 0  # characters of the answer that no later byte can change
        self._tail = decoder.initial_tail

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
        splices = [
            self._splice(*self._decoder.decode(self._tail, () if token in self._ends else (token,)))
            for token in ids
        ]
        changes = []
        for token, edit in zip(ids, self._answer.edits(splices), strict=True):
            if token in self._ends:
                changes.append((len(self.tokens), self._ends[token]))
            else:
                num_kept, added = self._answer.as_token_change(edit)
                changes.append((self._prompt_length + num_kept, added))
        return changes

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
