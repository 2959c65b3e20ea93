"""The KV cache's blocks: reference counts, reuse, and which block holds a prefix that another row can share.

As in vLLM's prefix cache: a block without references keeps its content until it is allocated again, and the
one that has been unused for longest is allocated first. A full block is identified by its tokens and by the
content before it, so that a prefix is found by exact comparison. It handles numbers only: it holds no tensor
and knows no row.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence

BlockKey = tuple[int, tuple[int, ...]]
"""Content number of the block before, and the tokens of this one."""

ROOT_CONTENT = 0
"""The content number before the first block of a row."""


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens each, numbered from 0."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self._refs = [0] * num_blocks
        self._unused: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._keys: dict[int, BlockKey] = {}  # block -> key, of registered blocks
        self._registered: dict[BlockKey, tuple[int, int]] = {}  # key -> block, content number
        self._content_numbers = itertools.count(ROOT_CONTENT + 1)

    @property
    def num_unused(self) -> int:
        """Blocks without references."""
        return len(self._unused)

    def allocate(self) -> int | None:
        """A block with one reference, its content given up; None where all are in use."""
        if not self._unused:
            return None
        block, _ = self._unused.popitem(last=False)
        self.unregister(block)
        self._refs[block] = 1
        return block

    def free(self, blocks: Sequence[int]) -> None:
        """Take one reference off each block. The last ones are reused first, so that prefixes stay longer."""
        for block in reversed(blocks):
            self._refs[block] -= 1
            if not self._refs[block]:
                self._unused[block] = None

    def acquire_prefix(
        self, before: int, tokens: Sequence[int], start: int, end: int
    ) -> tuple[list[int], list[int]]:
        """Find registered blocks that hold the first whole blocks of tokens[start:end], and refer to them.

        Args:
            before: content number of the block before `start`.
            tokens: a row's tokens.
            start: a multiple of the block size.
            end: no block reaches beyond this position.

        Returns:
            The blocks, with one reference more on each, and their content numbers.
        """
        blocks: list[int] = []
        content_numbers: list[int] = []
        for position in range(start, end - self.block_size + 1, self.block_size):
            key = (before, tuple(tokens[position : position + self.block_size]))
            entry = self._registered.get(key)
            if entry is None:
                break
            block, before = entry
            self._refs[block] += 1
            self._unused.pop(block, None)
            blocks.append(block)
            content_numbers.append(before)
        return blocks, content_numbers

    def register_full_block(self, block: int, before: int, tokens: Sequence[int]) -> int:
        """Let `acquire_prefix` find a full block. Of several blocks with one content it finds the first.

        Args:
            block: its number.
            before: content number of the block before it in its row.
            tokens: the tokens whose keys and values it holds.

        Returns:
            Its content number.
        """
        key = (before, tuple(tokens))
        if key not in self._registered:
            self._registered[key] = (block, next(self._content_numbers))
            self._keys[block] = key
        return self._registered[key][1]

    def is_shared(self, block: int) -> bool:
        """Whether another row refers to the block too, so that it must not be written."""
        return self._refs[block] > 1

    def unregister(self, block: int) -> None:
        """`acquire_prefix` no longer finds the block: its content is about to change."""
        if key := self._keys.pop(block, None):
            del self._registered[key]
