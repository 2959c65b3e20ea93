"""What a run learns from sentences: answered prompts, and prompts of which the first token alone is taught.

In: Records of answers.py, prompts, a tokenizer, Settings. Out: Lessons in parts by prompt, as
data/prompt_groups.py splits; a Lesson is a Group without scores, so that all that keeps groups keeps it.
Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.training.data.conversation import Conversation, prompt_key
from pad_vllm.training.data.preference_record import PreferenceRecord, unit_hash
from pad_vllm.training.data.prepare_data import split_groups
from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.distillation.instructions import Instruction, instructed_prompt_ids
from pad_vllm.training.settings import Settings


@dataclass(frozen=True)
class DistillationExample(PromptGroup):
    """A prompt with its answers, and the prompt as the teacher reads it."""

    instructed_ids: tuple[tuple[list[int], ...], ...] = ()
    """Per dimension the told prompts' tokens: the sentence's, and its opposite's where it has one."""


@dataclass(frozen=True)
class DistillationSplit:
    """Lessons by what they are for. `firsts` belong to `train`, `held_out_firsts` to `held_out`."""

    train: list[DistillationExample]
    validation: list[DistillationExample]
    held_out: list[DistillationExample]
    firsts: list[DistillationExample]
    held_out_firsts: list[DistillationExample]

    def all(self) -> list[DistillationExample]:
        answered = [*self.train, *self.validation, *self.held_out]
        return [*answered, *self.firsts, *self.held_out_firsts]

    def counts(self) -> dict[str, int]:
        """As the card says them."""
        named = {name.replace("_", " "): len(part) for name, part in vars(self).items()}
        return {name.replace("firsts", "first tokens"): count for name, count in named.items()}


class ExampleBuilder:
    """Makes Lessons: the one place that knows their limits.

    Prompts longer than max_prompt, and those that the chat template refuses, are None.
    """

    def __init__(self, tokenizer: Any, settings: Settings, asked: Sequence[Instruction]) -> None:
        self.tokenizer, self.settings, self.instructions = tokenizer, settings, asked

    def fits(self, prompt: Conversation) -> bool:
        return self._lesson(prompt, [[0]]) is not None

    def from_record(self, record: PreferenceRecord) -> DistillationExample | None:
        most = self.settings.max_response
        ids = [list(one.token_ids or [])[:most] for one in record.responses]
        return self._lesson(record.prompt, ids)

    def first_token_example(self, prompt: Conversation) -> DistillationExample | None:
        """The answer is its end alone, which is only predicted: the one token that every base has."""
        end = self.tokenizer.eos_token_id or 0
        return self._lesson(prompt, [[end]])

    def _lesson(self, prompt: Conversation, answers: list[list[int]]) -> DistillationExample | None:
        told = instructed_prompt_ids(self.tokenizer, prompt.messages(), self.instructions)
        if told is None:
            return None
        ids = chat_token_ids(self.tokenizer, prompt.messages())
        if len(ids) > self.settings.max_prompt:
            return None
        return DistillationExample(
            prompt_key(prompt),
            "taught",
            ids,
            answers,
            torch.zeros(0),
            (),
            conversation=prompt,
            instructed_ids=told,
        )

    def split(
        self, records: Iterable[PreferenceRecord], others: Iterable[Conversation]
    ) -> DistillationSplit:
        """records: the answered prompts. others: prompts of which the first token alone is taught.

        ValueError where nothing is left of a part.
        """
        answered = [lesson for lesson in map(self.from_record, records) if lesson is not None]
        train, validation, held_out = split_groups(answered, self.settings)
        firsts = [lesson for lesson in map(self.first_token_example, others) if lesson is not None]
        most = self.settings.held_out
        unseen = [lesson for lesson in firsts if unit_hash(lesson.prompt_key) < most]
        # Those that fall into the validation part are left out: early stopping looks at answers.
        seen = [f for f in firsts if unit_hash(f.prompt_key) >= most + self.settings.validation]
        return DistillationSplit(train, validation, held_out, seen, unseen)
