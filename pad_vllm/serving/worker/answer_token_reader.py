"""The tokens of each guided answer so far, for the no-repeat guard; V1 and V2 store them differently.

In: the guided rows of a step. Out: AnswerTokens, on their device. V2 has the tokens on the device. V1 shares
the host's list of each request: it appends to the list and, under async scheduling, completes it before it
calls processors (vllm/v1/worker/gpu_input_batch.py, update_async_output_token_ids). Imports no vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pad_vllm.engines.reward_engine import GuidedRequest
from pad_vllm.guidance import AnswerTokens
from pad_vllm.serving.worker.batch_slots import GuidedRows

_INITIAL_TOKENS = 256  # a copy's first size; it doubles


class AnswerTokenReader(Protocol):
    """Reads the tokens of the guided answers from one of vLLM's runners."""

    def read(self, guided: GuidedRows, ctx: Any) -> AnswerTokens:
        """The answer of each guided row. ctx: V2's batch layout, None on V1."""

    def num_tokens(self, guided: GuidedRows, ctx: Any) -> Tensor:
        """[G] integers: the number of tokens of each answer. ctx as in `read`."""


class V2AnswerTokenReader:
    """Reads texts, prompt and answer, from V2's request states on the device."""

    def __init__(self, states: Any, max_drafts: int = 0, *, needs_prompts: bool = False) -> None:
        """Nothing is read yet.

        Args:
            states: V2's LogitsProcRequestState.
            max_drafts: the most draft tokens of a request in a step.
            needs_prompts: whether whoever reads looks at tokens before the answer's first.
        """
        self._states, self._max_drafts = states, max_drafts
        self._needs_prompts = needs_prompts

    def read(self, guided: GuidedRows, ctx: Any) -> AnswerTokens:
        """The texts; an answer starts where its prompt ends. With drafts only the answers, unless prompts are
        needed.

        Without drafts the tokens are not copied: on a GPU vLLM has them in host memory, and a copy would
        fetch the prompts too. With drafts they are copied; where answers are enough, nothing then grows with
        the prompts.
        """
        start, stop = self._answer_span(guided, ctx)
        length = int(ctx.seq_lens_upper_bound_np.max())
        tokens = self._states.all_token_ids.gpu[:, :length]
        if not self._max_drafts:
            return AnswerTokens(tokens, start, stop, guided.slots)
        if self._needs_prompts:
            texts, first = tokens.index_select(0, guided.slots), torch.zeros_like(start)
        else:
            texts, first = self._copy_answers(tokens, start, guided, ctx), start
        self._write_drafts(texts, first, guided, ctx)
        return AnswerTokens(texts, start - first, stop - first)

    def _copy_answers(self, tokens: Tensor, start: Tensor, guided: GuidedRows, ctx: Any) -> Tensor:
        """[G, A + 1]: each answer from its first token on; A is the length of the batch's longest."""
        prompts = self._states.prompt_len.np[ctx.idx_mapping_np]
        longest = max(int((ctx.seq_lens_upper_bound_np - prompts).max()), 0)
        place = start.unsqueeze(1) + torch.arange(longest + 1, device=tokens.device)
        return tokens[guided.slots.unsqueeze(1), place.clamp(max=tokens.shape[1] - 1)]

    def _write_drafts(self, tokens: Tensor, first: Tensor, guided: GuidedRows, ctx: Any) -> None:
        """Write the draft tokens of each row into tokens [G, L], in place: those up to the row's own.

        vLLM has drafts nowhere else than in the inputs of their logits rows, one draft a row. Where a row has
        fewer than the most, a column without a draft is written with itself: a prompt's first, or the one
        behind the longest answer.

        first: [G] index in its text of each row's first token here.
        """
        back = torch.arange(self._max_drafts, device=tokens.device)
        place = ctx.pos.index_select(0, guided.rows) - first
        is_draft = back < ctx.expanded_local_pos.index_select(0, guided.rows).unsqueeze(1)
        spare = 0 if self._needs_prompts else tokens.shape[1] - 1
        position = torch.where(is_draft, place.unsqueeze(1) - back, spare)  # [G, drafts]
        row = (guided.rows.unsqueeze(1) - back).clamp(min=0)
        fed = ctx.input_ids[row].to(tokens.dtype)
        tokens.scatter_(1, position, torch.where(is_draft, fed, tokens.gather(1, position)))

    def num_tokens(self, guided: GuidedRows, ctx: Any) -> Tensor:
        """[G], from positions."""
        start, stop = self._answer_span(guided, ctx)
        return stop - start

    def _answer_span(self, guided: GuidedRows, ctx: Any) -> tuple[Tensor, Tensor]:
        """[G] each: where the answers start and end."""
        start = self._states.prompt_len.gpu.index_select(0, guided.slots)
        return start, ctx.pos.index_select(0, guided.rows) + 1


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
