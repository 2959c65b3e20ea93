"""Recovers the conversation from a base's prompt, and renders the PersRM's prompt for it.

In: a prompt's token ids or text, and Transformers fast tokenizers. Out: messages; rendered prompts.
Templates are learned by rendering conversations of made-up words, so none is written down in this file.
Knows nothing of models, of weights, or of the answer that follows a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from pad_vllm.text.preference_text import with_preference

Turn = dict[str, str]

_ROLES = {"s": "system", "u": "user", "a": "assistant"}
# The roles of the probes. Those without a system turn come first: where a template folds it into the user's
# turn, prompts with and without one begin alike, and only the reading without one is certain.
_PROBES = ("u", "uau", "uauau", "ua", "uu", "uaau", "au", "su", "suau", "sua", "suu", "usu", "uasu")
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError)
"""What a template raises on a conversation that it rejects."""


@dataclass
class _PromptFormat:
    """The text around the turns' contents, in prompts as rendered or as their tokens decode."""

    as_read: Callable[[str], str]
    """A rendered prompt -> the text in which it is read: itself, or its tokens decoded."""

    starts: dict[str, str] = field(default_factory=dict)
    """Text before the first content -> the first role."""

    separators: dict[str, dict[str, str]] = field(default_factory=dict)
    """Role -> {text after its content: the next role}."""

    ends: dict[str, None] = field(default_factory=dict)
    """Texts after the last content, the generation prompt included."""

    def learn(self, roles: Sequence[str], rendered: str) -> None:
        """Take what stands around the words of a rendered probe, if all its words stand in order."""
        text, around = self.as_read(rendered), []
        for number in range(len(roles)):
            before, word, text = text.partition(_word(number))
            if not word:
                return
            around.append(before)
        self.starts.setdefault(around[0], roles[0])
        self.ends.setdefault(text)
        for role, separator, next_role in zip(roles, around[1:], roles[1:], strict=False):
            if separator.strip():  # blanks are in contents too, and would cut them anywhere
                self.separators.setdefault(role, {}).setdefault(separator, next_role)

    def readings(self, text: str) -> Iterator[list[Turn]]:
        """Every way the text may have been rendered; longest starts and ends first."""
        for start in sorted(self.starts, key=len, reverse=True):
            for end in sorted(self.ends, key=len, reverse=True):
                length = len(text) - len(start) - len(end)
                if length >= 0 and text.startswith(start) and text.endswith(end):
                    yield list(self._split(text[len(start) :][:length], self.starts[start]))

    def _split(self, text: str, role: str) -> Iterator[Turn]:
        """The turns of a text whose first has this role: each ends at the first separator of its role."""
        begin = 0
        while True:
            ends = [
                (position, -len(separator), separator)
                for separator in self.separators.get(role, ())
                if (position := text.find(separator, begin)) >= 0
            ]
            if not ends:
                yield {"role": role, "content": text[begin:]}
                return
            position, _, separator = min(ends)
            yield {"role": role, "content": text[begin:position]}
            begin, role = position + len(separator), self.separators[role][separator]


class ChatTemplateReader:
    """Recovers the conversation from a prompt that a tokenizer's chat template rendered.

    Reads conversations of system, user and assistant turns. It does not know tools, images and a template's
    own switches: a prompt with them is not read.
    """

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: a Transformers tokenizer, with or without a chat template."""
        self._tokenizer = tokenizer
        self._learn()
        self.end_of_turn = _end_of_turn(tokenizer)
        """Id of the special token after an assistant's content; None where the template puts none."""

    def read(self, text: str) -> list[Turn] | None:
        """The conversation of a prompt, rendered or decoded, that ends where the assistant begins.

        A system prompt that the template adds by itself is left out. None where rendering the conversation
        would not give this text.
        """
        if self._rendered_probe != _render(self._tokenizer, _probe("u")):
            self._learn()  # templates with today's date change at midnight
        return self._read(text)

    def conversation_from_ids(self, ids: Sequence[int]) -> list[Turn]:
        """`read` of a prompt's tokens; a prompt that it cannot read becomes one user turn."""
        tokenizer = self._tokenizer
        messages = self.read(_decode(tokenizer, ids))
        return messages or [
            {"role": "user", "content": _decode(tokenizer, ids, skip_special=True).strip()}
        ]

    def _learn(self) -> None:
        # Some tokenizers decode a prompt to other blanks than were rendered: both formats are learned.
        rendered_format, decoded_format = _PromptFormat(str), _PromptFormat(self._roundtrip)
        self._rendered_probe = _render(self._tokenizer, _probe("u"))
        for messages in map(_probe, _PROBES if self._rendered_probe is not None else ()):
            rendered = _render(self._tokenizer, messages)
            if rendered is not None:
                roles = [message["role"] for message in messages]
                rendered_format.learn(roles, rendered)
                decoded_format.learn(roles, rendered)
        same = (rendered_format.starts, rendered_format.separators, rendered_format.ends) == (
            decoded_format.starts,
            decoded_format.separators,
            decoded_format.ends,
        )
        self._formats = [rendered_format] if same else [rendered_format, decoded_format]

    def _read(self, text: str) -> list[Turn] | None:
        bos = self._tokenizer.bos_token
        prompts = [text]
        if bos and text.startswith(bos):  # a completion request puts one before a rendered prompt
            prompts.append(text[len(bos) :])
        for prompt in prompts:
            for prompt_format in self._formats:
                for messages in prompt_format.readings(prompt):
                    rendered = _render(self._tokenizer, messages)
                    if rendered is not None and prompt_format.as_read(rendered) == prompt:
                        return messages
        return None

    def _roundtrip(self, text: str) -> str:
        return _decode(self._tokenizer, _encode(self._tokenizer, text))


def persrm_prompt_text(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], preference: str = ""
) -> str:
    """The PersRM's prompt: rendered, up to where the assistant begins.

    A conversation that the template rejects, or of which it drops a turn, is folded: first system turns into
    the user's turns, then all turns into one.

    Args:
        tokenizer: the PersRM's.
        messages: the conversation.
        preference: free text, put where training puts a preference in words.
    """
    turns = [dict(message) for message in messages]
    if preference:
        turns = _with_stated_preference(turns, preference)
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
    """`persrm_prompt_text` in tokens; the tokenizer adds its own <bos> only where it has no template.

    Args:
        tokenizer: the PersRM's.
        messages: the conversation.
        preference: free text, put where training puts a preference in words.
    """
    text = persrm_prompt_text(tokenizer, messages, preference)
    return _encode(tokenizer, text, add_special=not tokenizer.chat_template)


def _with_stated_preference(turns: list[Turn], preference: str) -> list[Turn]:
    if not any(turn["role"] == "user" for turn in turns):
        turns = [*turns, {"role": "user", "content": ""}]
    return with_preference(turns, preference)


def _folded(turns: Sequence[Turn]) -> list[Turn]:
    """System turns as the user's, neighbours of one role as one: every template accepts that."""
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
    """A conversation of made-up words; letters: its roles."""
    return [
        {"role": _ROLES[letter], "content": _word(number)} for number, letter in enumerate(letters)
    ]


def _word(number: int) -> str:
    """A content that no template contains, and that trimming and tokenizing do not change."""
    return f"Zqx{number}vkj"


def _render(
    tokenizer: Any, messages: Sequence[Turn], *, generation_prompt: bool = True
) -> str | None:
    """None where there is no template, or it rejects the conversation."""
    if not tokenizer.chat_template:
        return None
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generation_prompt
        )
    except _TEMPLATE_ERRORS:
        return None
    return str(text)


def _end_of_turn(tokenizer: Any) -> int | None:
    """Id of the first special token after an assistant's content, before any other text."""
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


def _encode(tokenizer: Any, text: str, *, add_special: bool = False) -> list[int]:
    # A lone surrogate, which JSON can carry, is no text to a tokenizer.
    clean = text.encode("utf-8", "replace").decode()
    return list(tokenizer(clean, add_special_tokens=add_special)["input_ids"])


def _decode(tokenizer: Any, ids: Sequence[int], *, skip_special: bool = False) -> str:
    return str(
        tokenizer.decode(
            list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )
    )
