"""The tokens of each guided answer so far, for the no-repeat guard; V1 and V2 store them differently.

In: the guided rows of a step. Out: AnswerTokens, on their device. On V2 they are what the steps were fed.
V1 shares the host's list of each request: it appends to the list and, under async scheduling, completes it
before it calls processors (vllm/v1/worker/gpu_input_batch.py, update_async_output_token_ids). Imports no
vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pad_vllm.answer_tokens import AnswerTokens
from pad_vllm.engines.reward_engine import GuidedRequest
from pad_vllm.serving.worker import device_buffers
from pad_vllm.serving.worker.batch_slots import GuidedRows

_INITIAL_TOKENS = 256  # what a copy has place for at first; it doubles


class AnswerTokenReader(Protocol):
    """Reads the tokens of the guided answers from one of vLLM's runners."""

    def read(self, guided: GuidedRows, ctx: Any) -> AnswerTokens:
        """The answer of each guided row. ctx: V2's batch layout, None on V1."""

    def num_tokens(self, guided: GuidedRows, ctx: Any) -> Tensor:
        """[G] integers: the number of tokens of each answer. ctx as in `read`."""


class V2AnswerTokenReader:
    """Keeps the guided answers on the device, by batch slot: a step adds the tokens that the runner was fed.

    So nothing grows with the prompts, and nothing is fetched from where vLLM has its texts, which on a GPU is
    host memory. Each logits row is fed one token of its answer, a draft or a sampled one; a draft that was
    rejected is written over by the next step, which is fed another at its place.
    """

    def __init__(self, states: Any) -> None:
        """states: V2's LogitsProcRequestState."""
        self._states = states
        self._is_read = np.zeros(states.max_num_reqs, dtype=bool)

    @cached_property
    def _answers(self) -> Tensor:
        """[slots, place] int32. An answer begins at column 1; column 0 takes tokens of prompts, and nothing
        reads it.
        """
        size = self._states.max_num_reqs, 1 + _INITIAL_TOKENS
        return device_buffers.zeros(*size, dtype=torch.int32, device=self._states.device)

    def add_request(self, slot: int, *, is_read: bool) -> None:
        """A request enters the slot; is_read: whether anything depends on its answer's tokens. If so,
        `read_earlier_tokens` comes before its first step.
        """
        self._is_read[slot] = is_read

    def read_earlier_tokens(self, slot: int) -> None:
        """Once the slot's new request is on the device: what it has answered already, before a preemption."""
        start = int(self._states.prompt_len.np[slot])
        stop = int(self._states.prefill_len.np[slot])
        if stop > start:
            self._reserve(stop - start)
            answer = self._states.all_token_ids.gpu[slot, start:stop]
            self._answers[slot, 1 : 1 + stop - start] = answer

    def read(self, guided: GuidedRows, ctx: Any) -> AnswerTokens:
        """Write what the step was fed, and return the answers, by slot. Does not wait for the device.

        A step (or slice of one) in which this is not called leaves a gap in the answers of its rows. A row
        whose request is not read gets some tokens of its slot.
        """
        longest = self._longest_answer(ctx)
        self._reserve(longest)
        length = self.num_tokens(guided, ctx).clamp(min=0, max=longest)
        fed = ctx.input_ids.index_select(0, guided.rows).to(torch.int32)
        self._answers.index_put_((guided.slots, length), fed)
        tokens = self._answers[:, : longest + 1]
        return AnswerTokens(tokens, torch.ones_like(length), length + 1, guided.slots)

    def num_tokens(self, guided: GuidedRows, ctx: Any) -> Tensor:
        """[G], from positions; not positive inside a prompt."""
        prompt_lengths = self._states.prompt_len.gpu.index_select(0, guided.slots)
        length: Tensor = ctx.pos.index_select(0, guided.rows) + 1 - prompt_lengths
        return length

    def _longest_answer(self, ctx: Any) -> int:
        """At least the most tokens of an answer that is read, from what the host knows."""
        slots = ctx.idx_mapping_np
        # Where a captured graph pads the batch, this array is longer than the batch.
        bounds = ctx.seq_lens_upper_bound_np[: len(slots)]
        lengths = bounds - self._states.prompt_len.np[slots]
        return max(int(lengths[self._is_read[slots]].max(initial=0)), 0)

    def _reserve(self, num_tokens: int) -> None:
        """Make place for answers of so many tokens; doubles it where it grows."""
        size, width = self._answers.shape
        if num_tokens >= width:
            width_needed = max(2 * width, num_tokens + 1)
            grown = device_buffers.zeros(
                size, width_needed, dtype=torch.int32, device=self._states.device
            )
            grown[:, :width] = self._answers
            self._answers = grown


class V1AnswerTokenReader:
    """Copies the host lists that V1 gave as they grow: each token is read once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._answers: dict[GuidedRequest, _GrowingAnswer] = {}

    def add_request(self, request: GuidedRequest, live_tokens: Sequence[int]) -> None:
        """live_tokens: the request's answer, the list that vLLM appends to."""
        self._answers[request] = _GrowingAnswer(live_tokens)

    def remove_request(self, request: GuidedRequest) -> None:
        """The request left the batch. Unknown requests are ignored."""
        self._answers.pop(request, None)

    def read(self, guided: GuidedRows, ctx: Any) -> AnswerTokens:  # noqa: ARG002
        """The answers without their prompts: all start at 0."""
        answers = self._known_tokens(guided)
        padded = np.zeros((len(answers), max(map(len, answers))), dtype=np.int32)
        for padded_answer, answer in zip(padded, answers, strict=True):
            padded_answer[: len(answer)] = answer
        tokens = torch.from_numpy(padded).to(self._device, non_blocking=True)
        length = self._lengths(answers)
        return AnswerTokens(tokens, torch.zeros_like(length), length)

    def num_tokens(self, guided: GuidedRows, ctx: Any) -> Tensor:  # noqa: ARG002
        """[G], from the lists."""
        return self._lengths(self._known_tokens(guided))

    def _known_tokens(self, guided: GuidedRows) -> list[np.ndarray]:
        return [self._answers[request].known_tokens() for request in guided.requests]

    def _lengths(self, answers: Sequence[np.ndarray]) -> Tensor:
        length = torch.tensor([len(answer) for answer in answers])
        return length.to(self._device, non_blocking=True)


class _GrowingAnswer:
    """A copy of one of V1's lists, extended by what is new in it."""

    def __init__(self, live_tokens: Sequence[int]) -> None:
        self._live_tokens = live_tokens
        self._copy = np.empty(_INITIAL_TOKENS, dtype=np.int32)
        self._count = 0

    def known_tokens(self) -> np.ndarray:
        """[n] int32: all tokens but the last ones that the host does not know yet, -1 in vLLM's list."""
        for token in self._live_tokens[self._count :]:
            if token < 0:
                break
            if self._count == len(self._copy):
                self._copy = np.concatenate((self._copy, np.empty_like(self._copy)))
            self._copy[self._count] = token
            self._count += 1
        return self._copy[: self._count]
