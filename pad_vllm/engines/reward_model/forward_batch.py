"""Packs chunks of rows into one pass: token ids, positions, cache slots and attention masks.

In: RowChunks, whose blocks have room for all their tokens. Out: the arguments of ForkedDecoder.forward. A
chunk is a stretch of a row's own tokens, then the nodes of its candidates, which lie in the cache slots
after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pad_vllm.engines.reward_model.host_to_device import send_to_device
from pad_vllm.engines.reward_model.paged_attention import AttentionBatch, AttentionGroup
from pad_vllm.engines.reward_model.scoring_request import TreeNode


@dataclass(frozen=True)
class RowChunk:
    """Some tokens of one row, to be computed in one pass."""

    blocks: Sequence[int]
    """All blocks of the row, in order."""

    start: int
    """Position of the first token."""

    tokens: Sequence[int]
    nodes: Sequence[TreeNode]
    """Nodes of the candidates' tree, computed after the tokens; only with the row's last tokens."""

    first_wanted: int
    """Hidden states are wanted from this position on, and of all nodes."""

    @property
    def size(self) -> int:
        """Tokens and nodes."""
        return len(self.tokens) + len(self.nodes)

    @property
    def end(self) -> int:
        """The position after the last token, nodes not counted."""
        return self.start + len(self.tokens)

    @property
    def end_slot(self) -> int:
        """The index after the last token or node, among the row's cache slots."""
        return self.start + self.size

    @property
    def token_ids(self) -> list[int]:
        """Ids of the tokens, then of the nodes: [size]."""
        return [*self.tokens, *(node.token for node in self.nodes)]

    @property
    def num_before_wanted(self) -> int:
        """How many of the chunk's first tokens need no hidden states."""
        return min(max(self.first_wanted - self.start, 0), len(self.tokens))


@dataclass(frozen=True)
class PackedPass:
    """Arguments of ForkedDecoder.forward over T tokens, and which chunk each of its n results belongs to."""

    ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    batch: AttentionBatch
    output_indices: Tensor  # [n] int64, indices among the T tokens
    chunk_index: Tensor  # [n] int64, index of the chunk


class _GroupArrays(NamedTuple):
    """Arguments of AttentionGroup.build, as int64 arrays on the host."""

    token_index: np.ndarray
    unpadded: np.ndarray
    block_table: np.ndarray
    positions: np.ndarray
    num_visible: np.ndarray
    also_visible: np.ndarray
    node_slots: np.ndarray


def pack_chunks(
    chunks: Sequence[RowChunk],
    block_size: int,
    kv_caches: dict[int, Tensor],
    device: torch.device,
) -> PackedPass:
    """Make one pass over the chunks, in their order; its arrays reach the device in one copy.

    Args:
        chunks: of different rows.
        block_size: tokens in a block.
        kv_caches: layer -> the cache that the blocks are in.
        device: where the pass runs.
    """
    starts = [0, *accumulate(chunk.size for chunk in chunks)]
    in_chunk = [np.arange(chunk.num_before_wanted, chunk.size) for chunk in chunks]
    ids = np.array([token for chunk in chunks for token in chunk.token_ids], np.int64)
    positions = np.concatenate([_positions(chunk) for chunk in chunks])
    slots = np.concatenate(
        [_slots(chunk, block_size, chunk.start, chunk.end_slot) for chunk in chunks]
    )
    unwritten = np.concatenate(
        [
            _slots(chunk, block_size, chunk.end_slot, _num_blocks(chunk, block_size) * block_size)
            for chunk in chunks
        ]
    )
    output_indices = np.concatenate(
        [start + indices for start, indices in zip(starts, in_chunk, strict=False)]
    )
    chunk_index = np.repeat(np.arange(len(chunks)), [len(indices) for indices in in_chunk])
    groups = [
        _group_arrays(
            [chunks[index] for index in members], [starts[index] for index in members], block_size
        )
        for members in _alike(chunks, block_size)
    ]
    host_arrays = [ids, positions, slots, unwritten, output_indices, chunk_index]
    tensors = iter(send_to_device([*host_arrays, *chain.from_iterable(groups)], device))
    ids_t, positions_t, slots_t, unwritten_t, output_indices_t, chunk_index_t = islice(tensors, 6)
    attention_groups = [
        AttentionGroup.build(
            **dict(zip(group._fields, islice(tensors, len(group)), strict=True)),
            block_size=block_size,
        )
        for group in groups
    ]
    batch = AttentionBatch(slots_t, unwritten_t, attention_groups, kv_caches)
    return PackedPass(ids_t, positions_t, batch, output_indices_t, chunk_index_t)


def _alike(chunks: Sequence[RowChunk], block_size: int) -> list[list[int]]:
    """Indices of the chunks in groups of like size and like length of their rows: less padding in a group."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, chunk in enumerate(chunks):
        last_block = (chunk.end_slot - 1) // block_size
        alike = (chunk.size - 1).bit_length(), last_block.bit_length() // 2
        groups.setdefault(alike, []).append(index)
    return list(groups.values())


def _num_blocks(chunk: RowChunk, block_size: int) -> int:
    """Blocks that the row's tokens take, and the chunk's nodes."""
    return -(-chunk.end_slot // block_size)


def _positions(chunk: RowChunk) -> np.ndarray:
    """[size] int64; nodes side by side have the same position."""
    positions = np.arange(chunk.start, chunk.start + chunk.size)
    positions[len(chunk.tokens) :] = [node.position for node in chunk.nodes]
    return positions


def _slots(chunk: RowChunk, block_size: int, start: int, end: int) -> np.ndarray:
    """Numbers in the cache of the row's slots from `start` up to `end`: [end - start] int64."""
    slot = np.arange(start, end)
    blocks = np.asarray(chunk.blocks, np.int64)
    return blocks[slot // block_size] * block_size + slot % block_size


def _group_arrays(chunks: list[RowChunk], starts: list[int], block_size: int) -> _GroupArrays:
    """The group's arrays on the host; starts: index of each chunk's first token among those of the pass."""
    R, Q = len(chunks), max(chunk.size for chunk in chunks)
    num_blocks = [_num_blocks(chunk, block_size) for chunk in chunks]
    C = max(num_blocks) * block_size
    block_table = np.zeros((R, max(num_blocks)), np.int64)
    positions, token_index, num_visible = (np.zeros((R, Q), np.int64) for _ in range(3))
    also_visible: list[int] = []
    node_slots: list[tuple[int, int]] = []
    for row, (chunk, start) in enumerate(zip(chunks, starts, strict=True)):
        block_table[row] = chunk.blocks[0]  # beyond its end a row reads itself again, and no other
        block_table[row, : num_blocks[row]] = chunk.blocks[: num_blocks[row]]
        positions[row, : chunk.size] = _positions(chunk)
        token_index[row] = start
        token_index[row, : chunk.size] += np.arange(chunk.size)
        num_visible[row] = positions[row] + 1  # own tokens lie in the slots of their positions
        for index, node in enumerate(chunk.nodes):
            query = len(chunk.tokens) + index
            num_visible[row, query] = node.position - len(node.ancestors)
            visible_nodes = (*node.ancestors, index)
            also_visible += [(row * Q + query) * C + chunk.end + n for n in visible_nodes]
            node_slots.append((row * C + chunk.end + index, node.position))
    sizes = np.array([chunk.size for chunk in chunks])
    return _GroupArrays(
        token_index=token_index,
        unpadded=np.flatnonzero((np.arange(Q) < sizes[:, None]).ravel()),
        block_table=block_table,
        positions=positions,
        num_visible=num_visible,
        also_visible=np.array(also_visible, np.int64),
        node_slots=np.array(node_slots, np.int64).reshape(-1, 2),
    )
