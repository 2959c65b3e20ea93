"""Instructions in the reward stream of the served model: which are in KV blocks, and which row reads which.

In: guided requests as they join and leave, and the batch. Out: for each row of a step the reserved blocks
that its reward stream reads in front of its own (vllm_api/prefixed_attention.py). A new instruction is read
once, between two steps (vllm_api/instruction_forward.py). What cannot be read stays unguided, for good: the
prefix cache may hold blocks of such a request, whose reward stream knew nothing of its instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pad_vllm.adapter.learned_prefix import LearnedPrefix
from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.engines.reward_engine import GuidedRequest
from pad_vllm.engines.shared.instruction_slots import InstructionSlots, Key
from pad_vllm.engines.shared.learned_prefixes import LearnedPrefixes
from pad_vllm.instruction import Instruction

_UNREAD = (
    "an instruction could not be read, or no block was free for it: its requests stay unguided"
)

ReadInstruction = Callable[[Instruction, Sequence[int]], None]
"""Write the prefix of an instruction into the first of these reserved blocks; all of them may be used."""


@dataclass(frozen=True)
class InstructionLimits:
    """How many instructions a server keeps, and how long they may be."""

    max_instructions: int
    max_tokens: int

    def blocks_each(self, block_size: int) -> int:
        """KV blocks that every instruction has, whatever its length."""
        return -(-self.max_tokens // block_size)

    def num_reserved_blocks(self, block_size: int) -> int:
        """KV blocks that all instructions together have."""
        return self.max_instructions * self.blocks_each(block_size)


@dataclass
class InstructionStream:
    """The instructions of one served model."""

    limits: InstructionLimits
    cache_config: Any
    """vLLM's; it knows the size of a block when the model is loaded and not before."""

    failure_log: FailureLog
    read: ReadInstruction
    learned: LearnedPrefixes = field(default_factory=LearnedPrefixes)
    """Of the served adapters; `read` finds them there."""

    batch: Mapping[int, GuidedRequest] = field(default_factory=dict)
    """The guided requests by batch slot, a live view of the logits processor's."""

    @property
    def block_size(self) -> int:
        """Tokens of a block of the KV cache."""
        return int(self.cache_config.block_size)

    @property
    def num_reserved_blocks(self) -> int:
        """Blocks of the KV cache that instructions have."""
        return self.limits.num_reserved_blocks(self.block_size)

    @property
    def max_prefix_blocks(self) -> int:
        """The most blocks of one instruction."""
        return self.limits.blocks_each(self.block_size)

    def __post_init__(self) -> None:
        self._slots = InstructionSlots(self.limits.max_instructions)
        self._unreadable: set[Key] = set()
        self._in_use: dict[int, Key] = {}  # id of a GuidedRequest -> what it acquired
        self._num_weight_changes = 0

    def add_learned(self, adapter: str, prefixes: Iterable[LearnedPrefix]) -> None:
        """An adapter with learned prefixes is served from now on.

        Args:
            adapter: a name that no other served adapter has.
            prefixes: its own.

        Raises:
            ValueError: they do not fill whole KV blocks.
        """
        prefixes = tuple(prefixes)
        for prefix in prefixes:
            if prefix.num_tokens % self.block_size:
                raise ValueError(
                    f"a learned prefix has {prefix.num_tokens} tokens, which are not whole KV blocks of "
                    f"{self.block_size}; accepted: a block size that divides it. Start with a smaller "
                    "--block-size (16 on GPUs, 32 on CPUs), or train the prefix with more --prefix-tokens."
                )
        self.learned.add(adapter, prefixes)

    def join(self, request: GuidedRequest) -> None:
        """A guided request enters the batch: its instruction is read, unless it was before.

        Sets the request's `instruction_blocks` and `instruction_weight`, NaN where it cannot be read.
        """
        instruction = request.guidance.instruction
        if instruction is None:
            return
        key = self._num_weight_changes, instruction
        request.instruction_weight = float("nan")
        too_long = instruction.num_places > self.max_prefix_blocks * self.block_size
        if too_long or key in self._unreadable:
            self.failure_log.add("instruction unread", 1, _UNREAD)
            return
        try:
            slot = self._slot_of(key)
        except Exception as error:  # noqa: BLE001, it would end the server and all its requests
            self._slots.discard(key)
            self._give_up(key, error)
            return
        if slot is None:
            self._give_up(key, None)
            return
        self._in_use[id(request)] = key
        num_blocks = instruction.prefix_length(self.block_size) // self.block_size
        request.instruction_blocks = self._blocks(slot)[:num_blocks]
        request.instruction_weight = 1.0

    def leave(self, request: GuidedRequest) -> None:
        """A request leaves the batch. A second call for it does nothing."""
        key = self._in_use.pop(id(request), None)
        if key is not None:
            self._slots.release(key)

    def leave_slot(self, slot: int) -> None:
        """The request in a batch slot ends; V2 reuses the slot later."""
        request = self.batch.get(slot)
        if request is not None:
            self.leave(request)

    def on_weights_changed(self) -> None:
        """New requests read their instructions with the new weights."""
        self._num_weight_changes += 1

    def prefix_blocks(self, batch_slots: Sequence[int]) -> np.ndarray | None:
        """The reserved blocks that rows read.

        batch_slots: of R rows. Returns [R, blocks] int32, numbers among the reserved blocks, -1 behind a
        row's last; None where no row reads any.
        """
        rows = [self.batch.get(slot) for slot in batch_slots]
        if not any(row is not None and row.instruction_blocks for row in rows):
            return None
        blocks = np.full((len(rows), self.max_prefix_blocks), -1, np.int32)
        for index, row in enumerate(rows):
            if row is not None:
                blocks[index, : len(row.instruction_blocks)] = row.instruction_blocks
        return blocks

    def _slot_of(self, key: Key) -> int | None:
        acquired = self._slots.acquire(key)
        if acquired is None:
            return None
        slot, is_new = acquired
        if is_new:
            self.read(key[1], self._blocks(slot))
        return slot

    def _blocks(self, slot: int) -> tuple[int, ...]:
        first = slot * self.max_prefix_blocks
        return tuple(range(first, first + self.max_prefix_blocks))

    def _give_up(self, key: Key, error: Exception | None) -> None:
        self._unreadable.add(key)
        self.failure_log.add("instruction unread", 1, _UNREAD, error)
