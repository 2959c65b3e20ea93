"""What a run learns from sentences: answered prompts, and prompts of which the first token alone is taught.

In: Records of answers.py, prompts, a tokenizer, Settings. Out: Lessons in parts by prompt, as
data/prompt_groups.py splits; a Lesson is a Group without scores, so that all that keeps groups keeps it.
Knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pad_vllm.text.chat_template import chat_ids
from pad_vllm.training.data.preference_record import Record, fold
from pad_vllm.training.data.prepare_data import split
from pad_vllm.training.data.prompt_groups import Group
from pad_vllm.training.distillation.instructions import Messages, Wish, told_ids
from pad_vllm.training.settings import Settings


@dataclass(frozen=True)
class Lesson(Group):
    """A prompt with its answers, and the prompt as the teacher reads it."""

    told: tuple[tuple[list[int], ...], ...] = ()
    """Per dimension the told prompts' tokens: the sentence's, and its opposite's where it has one."""


@dataclass(frozen=True)
class Parts:
    """Lessons by what they are for. `firsts` belong to `train`, `held_out_firsts` to `held_out`."""

    train: list[Lesson]
    validation: list[Lesson]
    held_out: list[Lesson]
    firsts: list[Lesson]
    held_out_firsts: list[Lesson]

    def all(self) -> list[Lesson]:
        answered = [*self.train, *self.validation, *self.held_out]
        return [*answered, *self.firsts, *self.held_out_firsts]

    def counts(self) -> dict[str, int]:
        """As the card says them."""
        named = {name.replace("_", " "): len(part) for name, part in vars(self).items()}
        return {name.replace("firsts", "first tokens"): count for name, count in named.items()}


class Lessons:
    """Makes Lessons: the one place that knows their limits.

    Prompts longer than max_prompt, and those that the chat template refuses, are None.
    """

    def __init__(self, tokenizer: Any, settings: Settings, asked: Sequence[Wish]) -> None:
        self.tokenizer, self.settings, self.asked = tokenizer, settings, asked

    def fits(self, prompt: str) -> bool:
        """prompt: messages as JSON."""
        return self._lesson(json.loads(prompt), [[0]]) is not None

    def answered(self, record: Record) -> Lesson | None:
        most = self.settings.max_response
        ids = [list(one.token_ids or [])[:most] for one in record.responses]
        return self._lesson([m.model_dump() for m in record.prompt], ids)

    def first(self, prompt: str) -> Lesson | None:
        """The answer is its end alone, which is only predicted: the one token that every base has."""
        end = self.tokenizer.eos_token_id or 0
        return self._lesson(json.loads(prompt), [[end]])

    def _lesson(self, prompt: Messages, answers: list[list[int]]) -> Lesson | None:
        told = told_ids(self.tokenizer, prompt, self.asked)
        if told is None:
            return None
        messages = [dict(message) for message in prompt]
        ids = chat_ids(self.tokenizer, messages)
        if len(ids) > self.settings.max_prompt:
            return None
        key = Record.model_validate({"prompt": messages, "responses": [{"text": "-"}] * 2}).key
        return Lesson(
            key, "taught", ids, answers, torch.zeros(0), (), prompt=tuple(messages), told=told
        )

    def parts(self, records: Iterable[Record], others: Iterable[str]) -> Parts:
        """records: the answered prompts. others: prompts of which the first token alone is taught.

        ValueError where nothing is left of a part.
        """
        answered = [lesson for lesson in map(self.answered, records) if lesson is not None]
        train, validation, held_out = split(answered, self.settings)
        firsts = [lesson for lesson in map(self.first, others) if lesson is not None]
        most = self.settings.held_out
        unseen = [lesson for lesson in firsts if fold(lesson.key) < most]
        # Those that fall into the validation part are left out: early stopping looks at answers.
        seen = [f for f in firsts if fold(f.key) >= most + self.settings.validation]
        return Parts(train, validation, held_out, seen, unseen)
