"""The rewards of the candidates in the last steps of answers with `pad_explain`.

In: the explained rows of a step, on the device. Out: the steps of one answer, on the host, once it ended:
until then the host does not wait for the device. A ring buffer of 32 MiB, allocated with the first step: the
oldest steps are overwritten, whichever answer they belong to. Imports no vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from pad_vllm.guidance_outcome import ExplainedStep

_BUFFER_BYTES = 32 << 20  # 8 bytes a candidate: some 41,000 steps of 100 candidates


class ExplanationBuffer:
    """Ring buffer of the last steps, found by outcome row (outcome_table.py)."""

    def __init__(self, device: torch.device, max_candidates: int) -> None:
        """max_candidates: the most that a row may have; narrower steps are padded to it."""
        self._device, self._max_candidates = device, max_candidates
        self._size = max(_BUFFER_BYTES // (8 * (max_candidates + 1)), 1)
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._next = 0
        self._owners: dict[int, int] = {}  # index in the buffers -> outcome row
        self._indices: dict[int, dict[int, None]] = {}  # outcome row -> its indices, oldest first

    def add(
        self, outcome_rows: Sequence[int], num_answer_tokens: Tensor, ids: Tensor, rewards: Tensor
    ) -> None:
        """Store one step of E explained rows.

        Args:
            outcome_rows: E outcome rows.
            num_answer_tokens: [E] integers, tokens that each answer has before this step.
            ids: [E, K] int64, candidates, best first.
            rewards: [E, K], what each candidate would get.
        """
        indices = [self._next_index(outcome_row) for outcome_row in outcome_rows]
        index = torch.tensor(indices).to(self._device, non_blocking=True)
        padding = (0, self._max_candidates - ids.shape[1])
        integers = torch.cat(
            [num_answer_tokens.int().unsqueeze(1), pad(ids.int(), padding, value=-1)], 1
        )
        integer_buffer, reward_buffer = self._allocated()
        integer_buffer.index_copy_(0, index, integers)
        reward_buffer.index_copy_(0, index, pad(rewards.float(), padding))

    def _allocated(self) -> tuple[Tensor, Tensor]:
        """The buffers: [size, 1 + K] int32, number of tokens and candidates; [size, K] float32, rewards."""
        if self._buffers is None:
            width, device = self._max_candidates, self._device
            self._buffers = (
                torch.zeros(self._size, width + 1, dtype=torch.int32, device=device),
                torch.zeros(self._size, width, device=device),
            )
        return self._buffers

    def _next_index(self, outcome_row: int) -> int:
        index, self._next = self._next, (self._next + 1) % self._size
        if (owner := self._owners.pop(index, None)) is not None:
            del self._indices[owner][index]
        self._owners[index] = outcome_row
        self._indices.setdefault(outcome_row, {})[index] = None
        return index

    def steps(self, outcome_row: int) -> list[ExplainedStep]:
        """The row's steps that were not overwritten, oldest first. Waits for the device."""
        indices = list(self._indices.get(outcome_row, ()))
        if not indices or self._buffers is None:
            return []
        integers, rewards = (buffer[indices].tolist() for buffer in self._buffers)
        steps = []
        for (num_answer_tokens, *padded_ids), padded_rewards in zip(integers, rewards, strict=True):
            ids = [token for token in padded_ids if token >= 0]
            steps.append((num_answer_tokens, ids, padded_rewards[: len(ids)]))
        return steps

    def discard(self, outcome_row: int) -> None:
        """Discard the row's steps."""
        for index in self._indices.pop(outcome_row, ()):
            del self._owners[index]
