"""The sentences that teach: each dimension's, put into a conversation as a user would put it.

In: a Teacher and conversations. Out: the conversations that the told base reads. A dimension has one told
conversation, or two where it has an opposite. Knows no model and no answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.preference_text import with_instruction
from pad_vllm.training.settings import DistillationSettings

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Instruction:
    """A dimension and what the base is told for it: its sentence, then its opposite's where it has one."""

    dimension: str
    sentences: tuple[str, ...]

    def prompt_ids(self, tokenizer: Any, prompt: Messages) -> tuple[list[int], ...]:
        """Tokens of the prompt, told each of the sentences."""
        return tuple(
            chat_token_ids(tokenizer, with_instruction(prompt, one)) for one in self.sentences
        )


def instructions_of(teacher: DistillationSettings) -> tuple[Instruction, ...]:
    """In the order of the dimensions."""
    both = [
        (name, [teacher.sentences[name], teacher.opposites.get(name, "")])
        for name in teacher.sentences
    ]
    return tuple(Instruction(name, tuple(filter(None, sentences))) for name, sentences in both)


def instructed_prompt_ids(
    tokenizer: Any, prompt: Messages, instructions: Sequence[Instruction]
) -> tuple[tuple[list[int], ...], ...] | None:
    """Per dimension its told prompts' tokens; None where the chat template does not take the prompt."""
    try:
        return tuple(wish.prompt_ids(tokenizer, prompt) for wish in instructions)
    except TemplateError:  # Gemma's takes no system turn, for instance
        return None
