"""One row of the reward model: the tokens whose keys and values are cached, in which blocks.

In: the tokens a row should have. Out: room for them, shared with other rows where a prefix is known.
Knows no weights and no reward; `tail` (d_w of the last tokens) is stored here and computed in scorer.py.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pad_vllm.engines.reward_model.kv_blocks import ROOT_CONTENT, BlockPool
from pad_vllm.engines.reward_model.scoring_request import common_prefix_length

KEPT_DIRECTIONS = 8  # directions kept; a second tokenizer rarely takes back more tokens than two


class CachedRow:
    """Cached tokens of one request."""

    def __init__(self, blocks: BlockPool, copy: Callable[[int, int], None]) -> None:
        """copy: copies the content of one block into another."""
        self._blocks, self._copy = blocks, copy
        self.tokens: list[int] = []
        self.blocks = array("q")  # which numpy reads in one go
        self._chain: list[int] = []  # content numbers of the full blocks
        self.last_directions: list[Tensor] = []  # d_w of the last tokens, each [H]

    def extend_from_cache(self, wanted: Sequence[int], most: int) -> None:
        """Append cached blocks that hold the next tokens of `wanted`, up to `most` tokens in all."""
        size, done = self._blocks.block_size, len(self.tokens)
        if done % size or len(self.blocks) * size > done:
            return
        blocks, chain = self._blocks.acquire_prefix(self._last(), wanted, done, most)
        if blocks:
            self.blocks.extend(blocks)
            self._chain += chain
            self.tokens += wanted[done : done + len(blocks) * size]
            self.last_directions = []

    def _last(self) -> int:
        return self._chain[-1] if self._chain else ROOT_CONTENT

    def common_prefix_length(self, wanted: Sequence[int], stays: int) -> int:
        """How many tokens are cached already; those among the first `stays` are the wanted ones."""
        return common_prefix_length(self.tokens, wanted, stays)

    def truncate(self, length: int) -> bool:
        """Drop the tokens after the first `length`. False where the block that these end in is shared
        and no block is left to copy it to; the row is then unchanged.
        """
        if length == len(self.tokens):
            return True
        size = self._blocks.block_size
        whole, part = divmod(length, size)
        if part and not self._own(whole):
            return False
        keep = whole + bool(part)
        self._blocks.free(self.blocks[keep:])
        del self.blocks[keep:], self._chain[whole:]
        gone = len(self.tokens) - length
        del self.tokens[length:]
        self.last_directions = (
            self.last_directions[:-gone] if gone < len(self.last_directions) else []
        )
        return True

    def _own(self, place: int) -> bool:
        """Make the block at `place` this row's alone, to be written. False where no block is left for it."""
        old = self.blocks[place]
        if self._blocks.is_shared(old):
            new = self._blocks.allocate()
            if new is None:
                return False
            self._copy(old, new)
            self._blocks.free([old])
            self.blocks[place] = new
        else:
            self._blocks.unregister(old)
        return True

    def reserve(self, length: int) -> bool:
        """Blocks for `length` tokens in all; False where too few are left (it keeps those it got)."""
        while len(self.blocks) * self._blocks.block_size < length:
            block = self._blocks.allocate()
            if block is None:
                return False
            self.blocks.append(block)
        return True

    def append(self, tokens: Sequence[int], tail: Sequence[Tensor]) -> None:
        """`tokens` are in the cache now; tail: d_w of the last of them, each [H]."""
        self.tokens += tokens
        # Copies: a view would keep all of the pass's directions in memory.
        new = torch.stack(list(tail[-KEPT_DIRECTIONS:])).unbind() if tail else ()
        self.last_directions = [*(self.last_directions if len(tail) == len(tokens) else ()), *new][
            -KEPT_DIRECTIONS:
        ]
        size = self._blocks.block_size
        for place in range(len(self._chain), len(self.tokens) // size):
            full = self.tokens[place * size : (place + 1) * size]
            self._chain.append(
                self._blocks.register_full_block(self.blocks[place], self._last(), full)
            )

    def next_full_block(self, wanted: Sequence[int]) -> tuple[int, tuple[int, ...]] | None:
        """Content number before, and tokens of, the whole block to be computed next; None where the row
        ends inside a block or has less than one left.
        """
        size, done = self._blocks.block_size, len(self.tokens)
        if done % size or len(wanted) <= done + size:
            return None
        return self._last(), tuple(wanted[done : done + size])

    def release(self) -> None:
        """Give all blocks back; their content may be found again until it is overwritten."""
        self._blocks.free(self.blocks)
        self.tokens, self.blocks, self._chain, self.last_directions = [], array("q"), [], []
