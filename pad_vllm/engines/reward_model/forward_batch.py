"""Packs pieces of rows into one pass: token ids, positions, cache slots and attention masks.

In: Pieces, whose blocks have room for all their tokens. Out: what ForkedDecoder.run takes. A piece is
a stretch of a row's own tokens, then the nodes of its candidates, which lie in the slots after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from pad_vllm.engines.reward_model.host_to_device import send_to_device
from pad_vllm.engines.reward_model.paged_attention import AttentionBatch, AttentionGroup
from pad_vllm.engines.reward_model.scoring_request import TreeNode


@dataclass(frozen=True)
class RowChunk:
    """Some tokens of one row."""

    blocks: Sequence[int]
    start: int
    """Position of the first."""

    tokens: Sequence[int]
    nodes: Sequence[TreeNode]
    first_wanted: int
    """Hidden states are wanted from this position on, and of all nodes."""

    @property
    def size(self) -> int:
        return len(self.tokens) + len(self.nodes)

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class PackedPass:
    """Arguments of ForkedDecoder.run, and whose its results are."""

    ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    batch: AttentionBatch
    wanted: Tensor  # [n] int64, places among the T tokens
    chunk_index: Tensor  # [n] int64, the piece of each


def pack_chunks(
    pieces: Sequence[RowChunk], block: int, caches: dict[int, Tensor], device: torch.device
) -> PackedPass:
    """One pass over the pieces, in their order; block: tokens a block."""
    starts = [0, *accumulate(p.size for p in pieces)]
    groups: dict[tuple[int, int], list[int]] = {}
    for n, p in enumerate(pieces):
        alike = (p.size - 1).bit_length(), ((p.start + p.size - 1) // block).bit_length() // 2
        groups.setdefault(alike, []).append(n)
    wanted = [
        np.arange(min(max(p.first_wanted - p.start, 0), len(p.tokens)), p.size) for p in pieces
    ]
    arrays = [
        np.array([i for p in pieces for i in (*p.tokens, *(n.token for n in p.nodes))], np.int64),
        np.concatenate([_positions(p) for p in pieces]),
        np.concatenate([_slots(p, block, p.start, p.start + p.size) for p in pieces]),
        np.concatenate(
            [_slots(p, block, p.start + p.size, _blocks(p, block) * block) for p in pieces]
        ),
        np.concatenate([start + some for start, some in zip(starts, wanted, strict=False)]),
        np.repeat(np.arange(len(pieces)), [len(some) for some in wanted]),
    ]
    for some in groups.values():
        arrays += _group([pieces[n] for n in some], [starts[n] for n in some], block)
    ids, positions, slots, unwritten, places, owner, *rest = send_to_device(arrays, device)
    made = [AttentionGroup.of(rest[at : at + _PARTS], block) for at in range(0, len(rest), _PARTS)]
    return PackedPass(ids, positions, AttentionBatch(slots, unwritten, made, caches), places, owner)


def _positions(piece: RowChunk) -> np.ndarray:
    positions = np.arange(piece.start, piece.start + piece.size)
    positions[len(piece.tokens) :] = [node.position for node in piece.nodes]
    return positions


def _blocks(piece: RowChunk, block: int) -> int:
    return -(-(piece.start + piece.size) // block)


def _slots(piece: RowChunk, block: int, start: int, end: int) -> np.ndarray:
    """The cache's slots of the row's places from `start` up to `end`."""
    at = np.arange(start, end)
    return np.asarray(piece.blocks, np.int64)[at // block] * block + at % block


_PARTS = 7  # arrays of a group


def _group(pieces: list[RowChunk], starts: list[int], block: int) -> list[np.ndarray]:
    """What Group.of takes."""
    R, Q = len(pieces), max(p.size for p in pieces)
    used = [_blocks(p, block) for p in pieces]
    C = max(used) * block
    table = np.zeros((R, max(used)), np.int64)
    at, place, keeps = (np.zeros((R, Q), np.int64) for _ in range(3))
    also: list[int] = []
    nodes: list[tuple[int, int]] = []
    for row, (p, start) in enumerate(zip(pieces, starts, strict=True)):
        table[row] = p.blocks[0]  # beyond its end a row reads itself again, and no other
        table[row, : used[row]] = p.blocks[: used[row]]
        at[row, : p.size] = _positions(p)
        place[row] = start
        place[row, : p.size] += np.arange(p.size)
        keeps[row] = at[row] + 1  # a row's own tokens lie in the slots of their positions
        for n, node in enumerate(p.nodes):
            query = len(p.tokens) + n
            keeps[row, query] = node.position - len(node.ancestors)
            also += [(row * Q + query) * C + p.end + number for number in (*node.ancestors, n)]
            nodes.append((row * C + p.end + n, node.position))
    sizes = np.array([p.size for p in pieces])
    inside = np.flatnonzero((np.arange(Q) < sizes[:, None]).ravel())
    flat = [np.array(numbers, np.int64) for numbers in (also, nodes)]
    return [place, inside, table, at, keeps, flat[0], flat[1].reshape(-1, 2)]
