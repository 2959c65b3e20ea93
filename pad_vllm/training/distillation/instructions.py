"""Instructions: the sentences that state a dimension, put into a conversation as a user would put them.

In: DistillationSettings and conversations. Out: the token ids of the conversations with an instruction,
which the teacher reads. A dimension has one such conversation, or two if it has an opposite. Knows no model
and no answers.
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
    """A dimension and the sentences that state it."""

    dimension: str
    sentences: tuple[str, ...]
    """The dimension's instruction, then, if there is one, the instruction of its opposite."""

    def prompt_ids(self, tokenizer: Any, prompt: Messages) -> tuple[list[int], ...]:
        """For each sentence the token ids of the prompt with the sentence after its last user turn."""
        return tuple(
            chat_token_ids(tokenizer, with_instruction(prompt, sentence))
            for sentence in self.sentences
        )


def instructions_from_settings(settings: DistillationSettings) -> tuple[Instruction, ...]:
    """One Instruction for each dimension, in the settings' order."""
    pairs = [
        (name, (settings.sentences[name], settings.opposites.get(name, "")))
        for name in settings.sentences
    ]
    return tuple(Instruction(name, tuple(filter(None, sentences))) for name, sentences in pairs)


def instructed_prompt_ids(
    tokenizer: Any, prompt: Messages, instructions: Sequence[Instruction]
) -> tuple[tuple[list[int], ...], ...] | None:
    """Token ids of the prompt with each dimension's instruction appended (second entry: the opposite's).

    Args:
        tokenizer: The base's, with the run's chat template.
        prompt: The messages of a conversation.
        instructions: One for each of the D dimensions.

    Returns:
        D tuples of one or two lists; None if the chat template rejects the prompt.
    """
    try:
        return tuple(instruction.prompt_ids(tokenizer, prompt) for instruction in instructions)
    except TemplateError:  # Gemma's rejects a system turn, for instance
        return None
