"""The answers so far, as each of vLLM's runners knows them: what the guard against loops looks at.

In: the guided rows of a step. Out: Said, on their device. V2 keeps the tokens on the device; V1 shares the
host's list of each request, which it appends to and, under async scheduling, completes before processors
are called (vllm/v1/worker/gpu_input_batch.py, update_async_output_token_ids). Imports no vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from pad_vllm.engines.reward_engine import GuidedRequest
from pad_vllm.guidance import AnswerTokens
from pad_vllm.serving.worker.batch_slots import GuidedRows

_ROOM = 256  # tokens that a buffer begins with


class AnswerTokenReader(Protocol):
    """Where the answers' tokens are."""

    def read(self, selection: GuidedRows, ctx: Any) -> AnswerTokens:
        """The answers of the step's guided rows; ctx is V2's batch layout."""

    def lengths(self, selection: GuidedRows, ctx: Any) -> torch.Tensor:
        """[G] how many tokens these answers have."""


class V2AnswerTokenReader:
    """states: V2's LogitsProcRequestState; drafts: the most that a request has in a step."""

    def __init__(self, states: Any, drafts: int = 0) -> None:
        self._states, self._drafts = states, drafts

    def read(self, selection: GuidedRows, ctx: Any) -> AnswerTokens:
        """Of whole texts: the answers begin where the prompts end. They stay where vLLM has them, which for a
        GPU is the host's memory: a copy would fetch the prompts too.
        """
        longest = int(ctx.seq_lens_upper_bound_np.max())
        tokens, span = self._states.all_token_ids.gpu[:, :longest], self._span(selection, ctx)
        if not self._drafts:
            return AnswerTokens(tokens, *span, selection.slots)
        tokens = tokens.index_select(0, selection.slots)
        self._write_drafts(tokens, selection, ctx)
        return AnswerTokens(tokens, *span)

    def _write_drafts(self, tokens: torch.Tensor, selection: GuidedRows, ctx: Any) -> None:
        """For each row, the drafts up to the one that it was fed stand behind what was said: tokens [G, L],
        in place. vLLM has them in the rows' input alone.
        """
        back = torch.arange(self._drafts, device=tokens.device)
        place = ctx.pos.index_select(0, selection.rows).unsqueeze(1) - back  # [G, drafts]
        drafted = back < ctx.expanded_local_pos.index_select(0, selection.rows).unsqueeze(1)
        row, place = (selection.rows.unsqueeze(1) - back).clamp(min=0), place.clamp(min=0)
        fed = ctx.input_ids[row].to(tokens.dtype)
        tokens.scatter_(1, place, torch.where(drafted, fed, tokens.gather(1, place)))

    def lengths(self, selection: GuidedRows, ctx: Any) -> torch.Tensor:
        """From positions."""
        start, stop = self._span(selection, ctx)
        return stop - start

    def _span(self, selection: GuidedRows, ctx: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """[G] each, where the answers begin and end."""
        start = self._states.prompt_len.gpu.index_select(0, selection.slots)
        return start, ctx.pos.index_select(0, selection.rows) + 1


class V1AnswerTokenReader:
    """The lists that V1 gave, copied as they grow: only new tokens are read one by one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._answers: dict[GuidedRequest, _Answer] = {}

    def enter(self, request: GuidedRequest, live: Sequence[int]) -> None:
        """live: the request's answer, which vLLM appends to."""
        self._answers[request] = _Answer(live)

    def leave(self, request: GuidedRequest) -> None:
        """It left the batch."""
        self._answers.pop(request, None)

    def read(self, selection: GuidedRows, ctx: Any) -> AnswerTokens:  # noqa: ARG002
        """Of answers alone: all begin at 0."""
        answers = self._known(selection)
        padded = np.zeros((len(answers), max(map(len, answers))), dtype=np.int32)
        for row, known in zip(padded, answers, strict=True):
            row[: len(known)] = known
        tokens = torch.from_numpy(padded).to(self._device, non_blocking=True)
        length = self._lengths(answers)
        return AnswerTokens(tokens, torch.zeros_like(length), length)

    def lengths(self, selection: GuidedRows, ctx: Any) -> torch.Tensor:  # noqa: ARG002
        """From the lists."""
        return self._lengths(self._known(selection))

    def _known(self, selection: GuidedRows) -> list[np.ndarray]:
        return [self._answers[request].tokens() for request in selection.requests]

    def _lengths(self, answers: Sequence[np.ndarray]) -> torch.Tensor:
        length = torch.tensor([len(known) for known in answers])
        return length.to(self._device, non_blocking=True)


class _Answer:
    def __init__(self, live: Sequence[int]) -> None:
        self._live = live
        self._known = np.empty(_ROOM, dtype=np.int32)
        self._count = 0

    def tokens(self) -> np.ndarray:
        """[n] all that are known; vLLM marks those that are not, the last ones, with -1."""
        for token in self._live[self._count :]:
            if token < 0:
                break
            if self._count == len(self._known):
                self._known = np.concatenate((self._known, np.empty_like(self._known)))
            self._known[self._count] = token
            self._count += 1
        return self._known[: self._count]
