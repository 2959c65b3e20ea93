"""The conversation in a base's prompt, and the PersRM's prompt for it.

In: a prompt's token ids or text, and Transformers fast tokenizers. Out: messages; rendered prompts. Templates
are learned by rendering conversations of made-up words, so none is written down here. Knows nothing of
models, of weights, or of the answer that follows a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from pad_vllm.text.preference_text import with_preference

Turn = dict[str, str]

_ROLES = {"s": "system", "u": "user", "a": "assistant"}
# Without a system turn first: where a template folds it into the user's, the two begin alike, and
# only the reading without one is certain.
_PROBES = ("u", "uau", "uauau", "ua", "uu", "uaau", "au", "su", "suau", "sua", "suu", "usu", "uasu")
_REFUSALS = (TemplateError, TypeError, ValueError, LookupError)
"""What a template raises on a conversation it does not take."""


@dataclass
class _Form:
    """The text around contents, in prompts as rendered or as their tokens decode."""

    shown: Callable[[str], str]
    starts: dict[str, str] = field(default_factory=dict)  # before the first content -> its role
    turns: dict[str, dict[str, str]] = field(default_factory=dict)  # role -> {between: next role}
    ends: dict[str, None] = field(default_factory=dict)  # after the last, generation prompt incl.

    def learn(self, roles: Sequence[str], rendered: str) -> None:
        """Take from a rendered probe what stands around its words, if they stand in order."""
        text, pieces = self.shown(rendered), []
        for number in range(len(roles)):
            before, word, text = text.partition(_word(number))
            if not word:
                return
            pieces.append(before)
        self.starts.setdefault(pieces[0], roles[0])
        self.ends.setdefault(text)
        for role, between, following in zip(roles, pieces[1:], roles[1:], strict=False):
            if between.strip():  # blanks are in contents too, and would cut them anywhere
                self.turns.setdefault(role, {}).setdefault(between, following)

    def readings(self, text: str) -> Iterator[list[Turn]]:
        """Every way the text may have been rendered; longest beginnings and ends first."""
        for start in sorted(self.starts, key=len, reverse=True):
            for end in sorted(self.ends, key=len, reverse=True):
                inner = len(text) - len(start) - len(end)
                if inner >= 0 and text.startswith(start) and text.endswith(end):
                    yield list(self._split(text[len(start) :][:inner], self.starts[start]))

    def _split(self, text: str, role: str) -> Iterator[Turn]:
        """The turns of a text whose first has this role: each ends where any other may begin."""
        at = 0
        while True:
            ends = [
                (place, -len(between), between)
                for between in self.turns.get(role, ())
                if (place := text.find(between, at)) >= 0
            ]
            if not ends:
                yield {"role": role, "content": text[at:]}
                return
            place, _, between = min(ends)
            yield {"role": role, "content": text[at:place]}
            at, role = place + len(between), self.turns[role][between]


class ChatTemplateReader:
    """Recovers the conversation from a prompt that a tokenizer's chat template rendered.

    Reads conversations of system, user and assistant turns. Tools, images and a template's own
    switches are not known: a prompt with them is not read.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._learn()
        self.end_of_turn = _end_of_turn(tokenizer)
        """The special token after an assistant's content; None where the template puts none."""

    def read(self, text: str) -> list[Turn] | None:
        """The conversation of a prompt that ends where the assistant begins, rendered or decoded.

        A system prompt that the template puts in by itself is left out. None where rendering does
        not give this text.
        """
        if self._sample != _render(self._tokenizer, _probe("u")):
            self._learn()  # templates that say today's date change at midnight
        return self._read(text)

    def conversation_from_ids(self, ids: Sequence[int]) -> list[Turn]:
        """`read` of a prompt's tokens; a prompt that it cannot read is one user turn."""
        tokenizer = self._tokenizer
        messages = self.read(_decode(tokenizer, ids))
        return messages or [
            {"role": "user", "content": _decode(tokenizer, ids, plain=True).strip()}
        ]

    def _learn(self) -> None:
        # Some tokenizers decode a prompt to other blanks than were rendered: both are known.
        forms = [_Form(str), _Form(self._roundtrip)]
        self._sample = _render(self._tokenizer, _probe("u"))
        for messages in map(_probe, _PROBES if self._sample is not None else ()):
            rendered = _render(self._tokenizer, messages)
            if rendered is not None:
                for form in forms:
                    form.learn([message["role"] for message in messages], rendered)
        plain, decoded = forms
        alike = (plain.starts, plain.turns, plain.ends) == (
            decoded.starts,
            decoded.turns,
            decoded.ends,
        )
        self._forms = forms[:1] if alike else forms

    def _read(self, text: str) -> list[Turn] | None:
        bos = self._tokenizer.bos_token
        texts = [text]
        if bos and text.startswith(bos):  # a completion request puts one before a rendered prompt
            texts.append(text[len(bos) :])
        for prompt in texts:
            for form in self._forms:
                for messages in form.readings(prompt):
                    rendered = _render(self._tokenizer, messages)
                    if rendered is not None and form.shown(rendered) == prompt:
                        return messages
        return None

    def _roundtrip(self, text: str) -> str:
        return _decode(self._tokenizer, _encode(self._tokenizer, text))


def persrm_prompt_text(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], preference: str = ""
) -> str:
    """The PersRM's prompt: rendered, up to where the assistant begins.

    preference: free text, put where training puts a preference in words. A conversation that the
    template refuses, or drops a turn of, is folded: system turns into the user's, then all into one.
    """
    turns = [dict(message) for message in messages]
    if preference:
        turns = _stated(turns, preference)
    for form in (turns, _folded(turns), [{"role": "user", "content": _joined(turns)}]):
        text = _render(tokenizer, form)
        if text is not None and all(
            turn["content"].strip() in text for turn in form if turn["role"] != "assistant"
        ):
            return text
    return "".join(f"{turn['content']}\n\n" for turn in turns)


def persrm_prompt_ids(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], preference: str = ""
) -> list[int]:
    """`prompt_text` in tokens; the tokenizer adds its own <bos> only where it has no template."""
    text = persrm_prompt_text(tokenizer, messages, preference)
    return _encode(tokenizer, text, special=not tokenizer.chat_template)


def _stated(turns: list[Turn], preference: str) -> list[Turn]:
    if not any(turn["role"] == "user" for turn in turns):
        turns = [*turns, {"role": "user", "content": ""}]
    return with_preference(turns, preference)


def _folded(turns: Sequence[Turn]) -> list[Turn]:
    """System turns as the user's, neighbours of one role as one: what every template takes."""
    folded: list[Turn] = []
    for turn in turns:
        role = "user" if turn["role"] == "system" else turn["role"]
        if folded and folded[-1]["role"] == role:
            folded[-1] = {"role": role, "content": _joined([folded[-1], turn])}
        else:
            folded.append({"role": role, "content": turn["content"]})
    return folded


def _joined(turns: Sequence[Turn]) -> str:
    return "\n\n".join(filter(None, (turn["content"] for turn in turns)))


def _probe(letters: str) -> list[Turn]:
    return [{"role": _ROLES[r], "content": _word(n)} for n, r in enumerate(letters)]


def _word(number: int) -> str:
    """A content that no template contains, and that trimming and tokenizing leave as it is."""
    return f"Zqx{number}vkj"


def _render(
    tokenizer: Any, messages: Sequence[Turn], *, generation_prompt: bool = True
) -> str | None:
    if not tokenizer.chat_template:
        return None
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generation_prompt
        )
    except _REFUSALS:
        return None
    return str(text)


def _end_of_turn(tokenizer: Any) -> int | None:
    rendered = _render(tokenizer, _probe("ua"), generation_prompt=False)
    if rendered is None:
        return None
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for token in _encode(tokenizer, rendered.rpartition(_word(1))[2]):
        if token in special:
            return token
        if _decode(tokenizer, [token]).strip():
            break
    return None


def _encode(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    # A lone surrogate, which JSON can carry, is no text to a tokenizer.
    clean = text.encode("utf-8", "replace").decode()
    return list(tokenizer(clean, add_special_tokens=special)["input_ids"])


def _decode(tokenizer: Any, ids: Sequence[int], *, plain: bool = False) -> str:
    """The text of tokens; plain: without special ones."""
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=plain, clean_up_tokenization_spaces=False)
    )
