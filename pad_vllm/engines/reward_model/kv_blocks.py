"""The KV cache's blocks: reference counts, reuse, and which hold a prefix that another row can share.

As in vLLM's prefix cache: a block that nobody refers to keeps its content until it is taken, the one
unused for longest first. A full block is known by its tokens and the block before it, so that a prefix
is found by exact comparison. Numbers only: it holds no tensor and knows no row.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence

BlockKey = tuple[int, tuple[int, ...]]
"""Content number of the block before, and the tokens of this one."""

ROOT_CONTENT = 0
"""The content number before the first block."""


class BlockPool:
    """`count` blocks of `size` tokens each."""

    def __init__(self, count: int, size: int) -> None:
        self.num_blocks, self.block_size = count, size
        self._refs = [0] * count
        self._unused: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))
        self._keys: dict[int, BlockKey] = {}
        self._known: dict[BlockKey, tuple[int, int]] = {}  # key -> block, content number
        self._numbers = itertools.count(ROOT_CONTENT + 1)

    @property
    def num_unused(self) -> int:
        """Blocks nobody refers to."""
        return len(self._unused)

    def allocate(self) -> int | None:
        """A block with one reference, its content forgotten; None where all are in use."""
        if not self._unused:
            return None
        block, _ = self._unused.popitem(last=False)
        self.unregister(block)
        self._refs[block] = 1
        return block

    def free(self, blocks: Sequence[int]) -> None:
        """One reference fewer on each. The last blocks are reused first, so that prefixes stay longer."""
        for block in reversed(blocks):
            self._refs[block] -= 1
            if not self._refs[block]:
                self._unused[block] = None

    def acquire_prefix(
        self, before: int, tokens: Sequence[int], start: int, end: int
    ) -> tuple[list[int], list[int]]:
        """The blocks that hold the first whole blocks of tokens[start:end] after content `before`, with a
        reference on each, and their content numbers.
        """
        blocks: list[int] = []
        chain: list[int] = []
        for at in range(start, end - self.block_size + 1, self.block_size):
            entry = self._known.get((before, tuple(tokens[at : at + self.block_size])))
            if entry is None:
                break
            block, before = entry
            self._refs[block] += 1
            self._unused.pop(block, None)
            blocks.append(block)
            chain.append(before)
        return blocks, chain

    def register_full_block(self, block: int, before: int, tokens: Sequence[int]) -> int:
        """Register a full block; returns its content number. Only the first block of one content is found."""
        key = (before, tuple(tokens))
        if key not in self._known:
            self._known[key] = (block, next(self._numbers))
            self._keys[block] = key
        return self._known[key][1]

    def is_shared(self, block: int) -> bool:
        """Whether another row refers to it, so that it must not be written."""
        return self._refs[block] > 1

    def unregister(self, block: int) -> None:
        """No longer found by `match`: its content is about to change."""
        if key := self._keys.pop(block, None):
            del self._known[key]
