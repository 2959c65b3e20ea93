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

from pad_vllm.engines.reward_model.ask import Node
from pad_vllm.engines.reward_model.attention import Batch, Group


@dataclass(frozen=True)
class Piece:
    """Some tokens of one row."""

    blocks: Sequence[int]
    start: int
    """Position of the first."""

    tokens: Sequence[int]
    nodes: Sequence[Node]
    wanted: int
    """Hidden states are wanted from this position on, and of all nodes."""

    @property
    def size(self) -> int:
        return len(self.tokens) + len(self.nodes)

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class Pass:
    """Arguments of ForkedDecoder.run."""

    ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    batch: Batch
    wanted: Tensor  # [n] int64, places among the T tokens


def pack(
    pieces: Sequence[Piece], block: int, caches: dict[int, Tensor], device: torch.device
) -> Pass:
    """One pass over the pieces, in their order; block: tokens a block."""
    ids = [i for p in pieces for i in (*p.tokens, *(node.token for node in p.nodes))]
    positions = [i for p in pieces for i in _positions(p)]
    slots = [_slot(p, p.start + i, block) for p in pieces for i in range(p.size)]
    starts = [0, *accumulate(p.size for p in pieces)]
    wanted = [
        starts[n] + i
        for n, p in enumerate(pieces)
        for i in range(min(max(p.wanted - p.start, 0), len(p.tokens)), p.size)
    ]
    groups: dict[tuple[int, int], list[int]] = {}
    for n, p in enumerate(pieces):
        alike = (p.size - 1).bit_length(), ((p.start + p.size - 1) // block).bit_length() // 2
        groups.setdefault(alike, []).append(n)
    made = [
        _group([pieces[n] for n in some], [starts[n] for n in some], block, device)
        for some in groups.values()
    ]
    tensors = [torch.tensor(numbers).to(device) for numbers in (ids, positions, slots, wanted)]
    return Pass(tensors[0], tensors[1], Batch(tensors[2], made, caches), tensors[3].long())


def _positions(piece: Piece) -> list[int]:
    return [*range(piece.start, piece.end), *(node.position for node in piece.nodes)]


def _slot(piece: Piece, at: int, block: int) -> int:
    return piece.blocks[at // block] * block + at % block


def _group(pieces: list[Piece], starts: list[int], block: int, device: torch.device) -> Group:
    R, Q = len(pieces), max(p.size for p in pieces)
    used = [-(-(p.start + p.size) // block) for p in pieces]
    C = max(used) * block
    table = np.zeros((R, max(used)), np.int64)
    at = np.zeros((R, Q), np.int64)
    place = np.zeros((R, Q), np.int64)
    slot_at = np.broadcast_to(np.arange(C), (R, C)).copy()
    for row, (p, start) in enumerate(zip(pieces, starts, strict=True)):
        table[row, : used[row]] = p.blocks[: used[row]]
        at[row, : p.size] = _positions(p)
        place[row] = start
        place[row, : p.size] += np.arange(p.size)
        slot_at[row, p.end : p.end + len(p.nodes)] = [node.position for node in p.nodes]
    sees = np.arange(C) <= at[:, :, None]  # a row's own tokens lie in the slots of their positions
    for row, p in enumerate(pieces):
        for n, node in enumerate(p.nodes):
            seen = sees[row, len(p.tokens) + n]
            seen[node.position - len(node.above) :] = False
            seen[[p.end + number for number in (*node.above, n)]] = True
    sizes = np.array([p.size for p in pieces])
    inside = np.flatnonzero((np.arange(Q) < sizes[:, None]).ravel())
    made = [torch.from_numpy(array).to(device) for array in (place, table, sees, at, slot_at)]
    whole = None if len(inside) == R * Q else torch.from_numpy(inside).to(device)
    return Group(made[0], whole, made[1], made[2], made[3], made[4])
