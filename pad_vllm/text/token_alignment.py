"""Keeps the PersRM's tokens in step with the base's, where the two cut text differently.

In: two Transformers fast tokenizers, then one request's token ids as the base makes them. Out: the PersRM's
tokens of the same prompt and answer, and what each candidate would change in them. Knows nothing of
models or rewards; imports neither torch nor vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

from pad_vllm.text.conversation_from_prompt import ChatTemplateReader, persrm_prompt_ids
from pad_vllm.text.incremental_encoding import EncodedAnswer, TextSplice, TokenChange, WindowEncoder
from pad_vllm.text.token_texts import TokenDecoder, UndecodedTail


class TokenAligner:
    """One for a pair of tokenizers.

    Raises ValueError for a tokenizer that is not a fast one, or a base's decoder that `Pieces` does not know.
    """

    def __init__(self, base: Any, persrm: Any, *, end_tokens: Iterable[int] = ()) -> None:
        """ends: tokens that end the base's answers beside its tokenizer's end of sequence."""
        for role, tokenizer in (("base", base), ("PersRM", persrm)):
            _require_fast(role, tokenizer)
        self.same_tokens = _same(base, persrm)
        """Token ids mean the same in both, so they are passed through."""
        self._persrm = persrm
        self._template = ChatTemplateReader(base)
        if self.same_tokens:
            return
        self._encoder = WindowEncoder(persrm.backend_tokenizer)
        self._pieces = TokenDecoder(base.backend_tokenizer)
        self._ends = frozenset(
            {base.eos_token_id, self._template.end_of_turn, *end_tokens} - {None}
        )
        end = ChatTemplateReader(persrm).end_of_turn
        self._end = persrm.eos_token_id if end is None else end

    def start(self, prompt_ids: Sequence[int], preference: str = "") -> AlignedTokens:
        """A request whose prompt the base has as these tokens; preference: the user's, in words."""
        if self.same_tokens and not preference:
            return AlignedTokens(prompt_ids)
        prompt = self._prompt(prompt_ids, preference)
        if self.same_tokens:
            return AlignedTokens(prompt)
        end = () if self._end is None else (self._end,)
        return _Translation(prompt, self._pieces, self._encoder, dict.fromkeys(self._ends, end))

    def _prompt(self, ids: Sequence[int], preference: str) -> list[int]:
        return persrm_prompt_ids(
            self._persrm, self._template.conversation_from_ids(ids), preference
        )


class AlignedTokens:
    """One request's tokens for the PersRM; this class where both models have the same tokens."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.tokens = list(prompt)
        """The PersRM's: prompt and answer so far."""
        self.num_unchanged = 0
        """How many of the first of them have not changed since `settle`."""

    def reset_unchanged(self) -> None:
        """From here on `stays` counts anew."""
        self.num_unchanged = len(self.tokens)

    def extend(self, ids: Sequence[int]) -> None:
        """Append tokens that the base generated."""
        self.tokens += ids

    def candidate_changes(self, ids: Sequence[int]) -> list[TokenChange]:
        """For each base token what `tokens` would be if it came next."""
        return [(len(self.tokens), (token,)) for token in ids]


class _Translation(AlignedTokens):
    """One request whose answer is decoded, and encoded again for the PersRM."""

    def __init__(
        self,
        prompt: Sequence[int],
        pieces: TokenDecoder,
        encoder: WindowEncoder,
        ends: dict[int, tuple[int, ...]],
    ) -> None:
        super().__init__(prompt)
        self._prompt = len(self.tokens)
        self._pieces = pieces
        self._ends = ends  # base tokens that end the turn -> the PersRM's
        self._answer = EncodedAnswer(encoder)
        self._settled = 0  # characters of the answer that no later byte can change
        self._tail = pieces.initial_tail

    def extend(self, ids: Sequence[int]) -> None:
        text, tail = self._pieces.decode(self._tail, ids)
        [edit] = self._answer.edits([self._splice(text, tail)])
        keep, added = self._answer.as_token_change(edit)
        self._answer.apply(edit)
        self._settled += len(text)
        self._tail = tail
        self.tokens[self._prompt + keep :] = added
        self.num_unchanged = min(self.num_unchanged, self._prompt + keep)

    def candidate_changes(self, ids: Sequence[int]) -> list[TokenChange]:
        splices = [
            self._splice(*self._pieces.decode(self._tail, () if token in self._ends else (token,)))
            for token in ids
        ]
        changes = []
        for token, edit in zip(ids, self._answer.edits(splices), strict=True):
            if token in self._ends:
                changes.append((len(self.tokens), self._ends[token]))
            else:
                keep, added = self._answer.as_token_change(edit)
                changes.append((self._prompt + keep, added))
        return changes

    def _splice(self, text: str, tail: UndecodedTail) -> TextSplice:
        """The change of the answer's text by newly final `text` and a new tail."""
        old = self._answer.text[self._settled :]
        new = text + self._pieces.pending_text(tail)
        alike = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False))
        )
        return TextSplice(self._settled + alike, new[alike:])


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
