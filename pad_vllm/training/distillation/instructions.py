"""The sentences that teach: each dimension's, put into a conversation as a user would put it.

In: a Teacher and conversations. Out: the conversations that the told base reads. A dimension has one told
conversation, or two where it has an opposite. Knows no model and no answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from pad_vllm.text.chat_template import chat_ids
from pad_vllm.text.preference_text import with_wish
from pad_vllm.training.settings import Teacher

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Wish:
    """A dimension and what the base is told for it: its sentence, then its opposite's where it has one."""

    dimension: str
    sentences: tuple[str, ...]

    def ids(self, tokenizer: Any, prompt: Messages) -> tuple[list[int], ...]:
        """Tokens of the prompt, told each of the sentences."""
        return tuple(chat_ids(tokenizer, with_wish(prompt, one)) for one in self.sentences)


def wishes(teacher: Teacher) -> tuple[Wish, ...]:
    """In the order of the dimensions."""
    both = [
        (name, [teacher.sentences[name], teacher.opposites.get(name, "")])
        for name in teacher.sentences
    ]
    return tuple(Wish(name, tuple(filter(None, sentences))) for name, sentences in both)


def told_ids(
    tokenizer: Any, prompt: Messages, asked: Sequence[Wish]
) -> tuple[tuple[list[int], ...], ...] | None:
    """Per dimension its told prompts' tokens; None where the chat template does not take the prompt."""
    try:
        return tuple(wish.ids(tokenizer, prompt) for wish in asked)
    except TemplateError:  # Gemma's takes no system turn, for instance
        return None
