"""Transformers' own decoding under an instruction or a logits processor, for methods that vLLM does not have.

In: a model, prompts, a Condition. Out: DrawnAnswers, without losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from pad_vllm.steering.comparison_conditions import Condition
from pad_vllm.steering.guided_answers import Conversations, DrawnAnswer, condition_messages
from pad_vllm.text.chat_template import chat_token_ids

TOP_K = 20
BATCH = 32


@dataclass
class TransformersDecoding:
    """Transformers' own decoding, in left-padded batches."""

    model: Any
    tokenizer: Any
    temperature: float  # 0 is greedy
    tokens: int  # of an answer, at most

    def draw(
        self,
        prompts: Conversations,
        condition: Condition,
        *,
        processor: Callable[[Conversations], LogitsProcessor] | None = None,
        seed: int = 0,
    ) -> list[DrawnAnswer]:
        """An answer to each prompt.

        Args:
            prompts: Of the answers.
            condition: Whose instruction, if any, is in the prompts.
            processor: Makes what changes the logits of one batch's prompts; None for the model as it is.
            seed: Of the draw.
        """
        answers: list[DrawnAnswer] = []
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            torch.manual_seed(start + 1000 * seed)
            ids, mask = self.padded_ids(batch, condition)
            sampling = {"do_sample": True, "temperature": self.temperature, "top_k": TOP_K}
            generated = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.tokens,
                pad_token_id=self.tokenizer.eos_token_id,
                logits_processor=[] if processor is None else [processor(batch)],
                **(sampling if self.temperature else {"do_sample": False}),
            )
            answers += [self._answer(row[ids.shape[1] :].tolist()) for row in generated]
        return answers

    def _answer(self, ids: list[int]) -> DrawnAnswer:
        end = self.tokenizer.eos_token_id
        ids = ids[: ids.index(end) + 1] if end in ids else ids
        return DrawnAnswer(self.tokenizer.decode(ids, skip_special_tokens=True), tuple(ids))

    def padded_ids(self, prompts: Conversations, condition: Condition) -> tuple[Tensor, Tensor]:
        """Token ids [N, T] int64, padded with 0 on the left, and their mask [N, T], 0 for padding."""
        rows = [
            chat_token_ids(self.tokenizer, condition_messages(prompt, condition))
            for prompt in prompts
        ]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
