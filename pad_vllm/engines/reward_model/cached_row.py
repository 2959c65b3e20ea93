"""One row of the reward model: the tokens whose keys and values are cached, and the blocks that hold them.

In: the tokens that a row should have. Out: blocks for them, shared with other rows where a prefix is cached
already. It knows no weights and computes no reward; reward_scorer.py gives it d_w of the last tokens to
store.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pad_vllm.engines.reward_model.kv_blocks import ROOT_CONTENT, BlockPool
from pad_vllm.engines.reward_model.scoring_request import common_prefix_length

KEPT_DIRECTIONS = 8  # a second tokenizer rarely takes back more than two tokens


class CachedRow:
    """The cached tokens of one request."""

    def __init__(self, pool: BlockPool, copy_block: Callable[[int, int], None]) -> None:
        """copy_block: copies the content of one block (first argument) to another."""
        self._pool, self._copy_block = pool, copy_block
        self.tokens: list[int] = []
        """The tokens whose keys and values are cached."""
        self.blocks = array("q")  # int64, which numpy reads without a loop
        """Numbers of its blocks; they may have room for more tokens."""
        self._content_numbers: list[int] = []  # of the full blocks
        self.last_directions: list[Tensor] = []
        """d_w after each of the last tokens, [H] float32 each; at most KEPT_DIRECTIONS."""

    def extend_from_cache(self, tokens: Sequence[int], limit: int) -> None:
        """Append cached blocks that hold the next of `tokens`; at most `limit` tokens in all."""
        size, done = self._pool.block_size, len(self.tokens)
        if done % size or len(self.blocks) * size > done:
            return
        blocks, content_numbers = self._pool.acquire_prefix(
            self._last_content(), tokens, done, limit
        )
        if blocks:
            self.blocks.extend(blocks)
            self._content_numbers += content_numbers
            self.tokens += tokens[done : done + len(blocks) * size]
            self.last_directions = []

    def _last_content(self) -> int:
        return self._content_numbers[-1] if self._content_numbers else ROOT_CONTENT

    def common_prefix_length(self, tokens: Sequence[int], num_unchanged: int) -> int:
        """How many of `tokens` are cached; the first `num_unchanged` are equal, as far as both go."""
        return common_prefix_length(self.tokens, tokens, num_unchanged)

    def truncate(self, length: int) -> bool:
        """Drop the tokens after the first `length`. False, and nothing changes, where the block in which
        these end is shared and no block is left to copy it to.
        """
        if length == len(self.tokens):
            return True
        num_full, in_last = divmod(length, self._pool.block_size)
        if in_last and not self._make_writable(num_full):
            return False
        num_blocks = num_full + bool(in_last)
        self._pool.free(self.blocks[num_blocks:])
        del self.blocks[num_blocks:], self._content_numbers[num_full:]
        num_dropped = len(self.tokens) - length
        del self.tokens[length:]
        keeps_some = num_dropped < len(self.last_directions)
        self.last_directions = self.last_directions[:-num_dropped] if keeps_some else []
        return True

    def _make_writable(self, index: int) -> bool:
        """Make the row's block at `index` its own, by a copy if need be. False where no block is left."""
        old = self.blocks[index]
        if self._pool.is_shared(old):
            new = self._pool.allocate()
            if new is None:
                return False
            self._copy_block(old, new)
            self._pool.free([old])
            self.blocks[index] = new
        else:
            self._pool.unregister(old)
        return True

    def reserve(self, length: int) -> bool:
        """Allocate blocks for `length` tokens in all. False where too few are left; it keeps those it got."""
        while len(self.blocks) * self._pool.block_size < length:
            block = self._pool.allocate()
            if block is None:
                return False
            self.blocks.append(block)
        return True

    def append(self, tokens: Sequence[int], directions: Sequence[Tensor]) -> None:
        """Note that `tokens` are cached now; directions: d_w after the last of them, [H] float32 each."""
        self.tokens += tokens
        # Copied: a view would keep the directions of the whole pass in memory.
        new = torch.stack(list(directions[-KEPT_DIRECTIONS:])).unbind() if directions else ()
        # The old ones stay only where none is missing between them and the new ones.
        old = self.last_directions if len(directions) == len(tokens) else ()
        self.last_directions = [*old, *new][-KEPT_DIRECTIONS:]
        size = self._pool.block_size
        for index in range(len(self._content_numbers), len(self.tokens) // size):
            content = self.tokens[index * size : (index + 1) * size]
            number = self._pool.register_full_block(
                self.blocks[index], self._last_content(), content
            )
            self._content_numbers.append(number)

    def next_full_block(self, tokens: Sequence[int]) -> tuple[int, tuple[int, ...]] | None:
        """Key of the whole block that is computed next: content number before it, and its tokens. None where
        the row ends inside a block, or has a block or less left to compute.
        """
        size, done = self._pool.block_size, len(self.tokens)
        if done % size or len(tokens) <= done + size:
            return None
        return self._last_content(), tuple(tokens[done : done + size])

    def release(self) -> None:
        """Free all blocks; `extend_from_cache` can find their content until it is overwritten."""
        self._pool.free(self.blocks)
        self.tokens, self.blocks = [], array("q")
        self._content_numbers, self.last_directions = [], []
