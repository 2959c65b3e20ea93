"""What a distillation trains on: answered prompts, and prompts of which only the first answer token counts.

In: PreferenceRecords of instructed_answers.py, prompts, a tokenizer, Settings. Out: DistillationExamples in
parts, split by prompt as in data/prompt_groups.py. A DistillationExample is a PromptGroup without scores, so
that the caches take it as it is. Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.conversation import Conversation, prompt_key
from pad_vllm.training.data.preference_record import PreferenceRecord, unit_hash
from pad_vllm.training.data.prepare_data import split_groups
from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.distillation.instructions import Instruction, instructed_prompt_ids
from pad_vllm.training.settings import Settings


@dataclass(frozen=True)
class DistillationExample(PromptGroup):
    """A prompt with its answers, and the prompts with instructions that the teacher reads instead."""

    instructed_ids: tuple[tuple[list[int], ...], ...] = ()
    """[D] The prompt's token ids with the dimension's instruction, then, if any, with its opposite's."""


@dataclass(frozen=True)
class DistillationSplit:
    """The examples of a run, by what they are for."""

    train: list[DistillationExample]
    validation: list[DistillationExample]
    held_out: list[DistillationExample]
    first_tokens: list[DistillationExample]
    """Trained on beside `train`: of these only the first answer token counts."""

    held_out_first_tokens: list[DistillationExample]
    """Evaluated beside `held_out`."""

    def all(self) -> list[DistillationExample]:
        """The examples of all parts."""
        return [example for part in vars(self).values() for example in part]

    def counts(self) -> dict[str, int]:
        """Name of a part, as the model card has it -> number of examples."""
        return {name.replace("_", " "): len(part) for name, part in vars(self).items()}


class ExampleBuilder:
    """Makes DistillationExamples. Every limit on their length is applied here.

    Methods return None for a prompt longer than `max_prompt` or rejected by the chat template.

    Args:
        tokenizer: The base's, with the run's chat template.
        settings: Their max_prompt, drawn_tokens, validation and held_out are used.
        instructions: One for each dimension.
    """

    def __init__(
        self, tokenizer: Any, settings: Settings, instructions: Sequence[Instruction]
    ) -> None:
        self.tokenizer, self.settings, self.instructions = tokenizer, settings, instructions

    def fits(self, prompt: Conversation) -> bool:
        """Whether examples can be made of a prompt."""
        return self._example(prompt, [[0]]) is not None

    def from_record(self, record: PreferenceRecord) -> DistillationExample | None:
        """An example of a prompt and its drawn answers, which are cut to `drawn_tokens`."""
        limit = self.settings.drawn_tokens
        ids = [list(response.token_ids or [])[:limit] for response in record.responses]
        return self._example(record.prompt, ids)

    def first_token_example(self, prompt: Conversation) -> DistillationExample | None:
        """An example of a prompt whose answer has one token.

        The token is only predicted, never read; it is the end of the sequence, which every base has.
        """
        end = self.tokenizer.eos_token_id or 0
        return self._example(prompt, [[end]])

    def split(
        self, records: Iterable[PreferenceRecord], first_token_prompts: Iterable[Conversation]
    ) -> DistillationSplit:
        """All examples of a run. The prompt's key alone decides the part, so every run splits alike.

        Args:
            records: The answered prompts.
            first_token_prompts: Others, of which only the first answer token counts.

        Raises:
            ValueError: No answered prompt falls into one of the parts.
        """
        answered = [example for example in map(self.from_record, records) if example is not None]
        train, validation, held_out = split_groups(answered, self.settings)
        examples = map(self.first_token_example, first_token_prompts)
        first_tokens = [(unit_hash(e.prompt_key), e) for e in examples if e is not None]
        held_out_share, validation_share = self.settings.held_out, self.settings.validation
        # Those of the validation part are dropped: early stopping goes by answers.
        return DistillationSplit(
            train=train,
            validation=validation,
            held_out=held_out,
            first_tokens=[e for at, e in first_tokens if at >= held_out_share + validation_share],
            held_out_first_tokens=[e for at, e in first_tokens if at < held_out_share],
        )

    def _example(
        self, prompt: Conversation, answers: list[list[int]]
    ) -> DistillationExample | None:
        messages = prompt.messages()
        instructed_ids = instructed_prompt_ids(self.tokenizer, messages, self.instructions)
        if instructed_ids is None:
            return None
        prompt_ids = chat_token_ids(self.tokenizer, messages)
        if len(prompt_ids) > self.settings.max_prompt:
            return None
        return DistillationExample(
            prompt_key=prompt_key(prompt),
            source="taught",
            prompt_ids=prompt_ids,
            response_ids=answers,
            scores=torch.zeros(0),
            prefix_scorers=(),
            conversation=prompt,
            instructed_ids=instructed_ids,
        )
