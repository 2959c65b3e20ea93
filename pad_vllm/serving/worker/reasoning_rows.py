"""Which rows are inside a reasoning model's <think> part, where the operator turned guidance off.

In: V2's prompts, once a request, and its answers so far; the token ids of <think> and </think>. Out: [G]
bool.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pad_vllm.answer_tokens import AnswerTokens
from pad_vllm.serving.start.reasoning_markers import ReasoningMarkers
from pad_vllm.serving.worker import device_buffers


class ReasoningRows:
    """Knows of each batch slot whether its prompt ends inside reasoning. V2 only."""

    def __init__(self, states: Any, markers: ReasoningMarkers) -> None:
        """states: V2's LogitsProcRequestState."""
        self._states, self._markers = states, markers

    @cached_property
    def _begins_inside(self) -> Tensor:
        """[slots] bool."""
        size = self._states.max_num_reqs
        return device_buffers.zeros(size, dtype=torch.bool, device=self._states.device)

    def read_prompt(self, slot: int) -> None:
        """Once the prompt of the slot's new request is on the device, and before its first step."""
        length = int(self._states.prompt_len.np[slot])
        prompt = self._states.all_token_ids.gpu[slot, : max(length, 1)].unsqueeze(0)
        is_text = torch.full_like(prompt, length > 0, dtype=torch.bool)
        begin, end = self._last_markers(prompt, is_text)
        self._begins_inside[slot] = (begin > end).squeeze(0)

    def inside(self, answers: AnswerTokens, slots: Tensor) -> Tensor:
        """[G] bool: the last <think> of prompt and answer has no </think> after it. slots [G] int64."""
        tokens = answers.row_tokens()
        position = torch.arange(tokens.shape[1], device=tokens.device)
        of_answer = position >= answers.start.unsqueeze(-1)
        of_answer &= position < answers.stop.unsqueeze(-1)
        begin, end = self._last_markers(tokens, of_answer)
        # Equal only where the answer has neither.
        return (begin > end) | ((begin == end) & self._begins_inside.index_select(0, slots))

    def _last_markers(self, tokens: Tensor, is_text: Tensor) -> tuple[Tensor, Tensor]:
        """[G] each: 1 + the last position of <think> and of </think> in tokens [G, L], 0 without."""
        number = torch.arange(1, tokens.shape[1] + 1, device=tokens.device) * is_text

        def last(token: int) -> Tensor:
            return (number * (tokens == token)).amax(-1)

        return last(self._markers.start_id), last(self._markers.end_id)
