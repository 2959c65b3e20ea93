"""Attention of packed rows of different lengths over one paged KV cache, as Transformers calls it.

A pass packs T tokens of many rows behind each other, in S streams (1 below the fork; 2 above: base and
reward). Rows of like size form a Group and attend together, padded, under one mask: causal for a row's own
tokens; a candidate's token sees the row's tokens that it keeps and its own ancestors.
In: q, k, v of one layer and the Batch in the keyword arguments. Knows neither requests nor rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

ATTENTION_NAME = "pad_paged"


@dataclass
class AttentionGroup:
    """R rows that attend together, Q tokens each at most, over C key slots at most."""

    token_index: Tensor  # [R, Q] int64, where among the T tokens; padding repeats the first
    unpadded: Tensor | None  # [R * Q] int64, the places that are no padding; None where all are
    block_table: Tensor  # [R, blocks] int64, blocks of each row, C = blocks * size
    visible: Tensor  # [R, Q, C] bool
    positions: Tensor  # [R, Q] int64, position of each token in its row
    node_slots: Tensor  # [n, 2] int64, a candidate's token: its slot among the R * C, its position
    masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: Sequence[Tensor], block: int) -> AttentionGroup:
        """From place, inside, table, at, how many of the row's own tokens each token keeps [R, Q], which
        others it sees [m] among the R * Q * C, and nodes.
        """
        place, inside, table, at, keeps, also, nodes = parts
        slots = torch.arange(table.shape[1] * block, dtype=torch.int32, device=table.device)
        sees = slots < keeps.int().unsqueeze(-1)
        sees.view(-1).index_fill_(0, also, 1)
        whole = len(inside) == place.numel()
        return cls(place, None if whole else inside, table, sees, at, nodes)

    def _slot_at(self) -> Tensor:
        """[R, C] int64, position of what each key slot holds: a row's own tokens lie at theirs."""
        R, _, C = self.visible.shape
        slot_at = torch.arange(C, device=self.visible.device).repeat(R)
        return slot_at.index_copy_(0, *self.node_slots.unbind(1)).view(R, C)

    def mask(self, window: int | None, copies: int) -> Tensor:
        """[R, 1, copies * Q, C] bool under a sliding window of so many tokens; made once a pass.

        Both streams and all KV heads share it. Rows of a group differ in Q by less than a factor of two, so
        that it has fewer than 2 * copies * C * (tokens of the pass) elements.
        """
        key = (window, copies)
        if key not in self.masks:
            sees = self.visible
            if window is not None:
                behind = self.positions.unsqueeze(-1) - self._slot_at().unsqueeze(1)
                sees = sees & (behind < window)
            folded = sees if copies == 1 else sees.repeat(1, copies, 1)
            self.masks[key] = folded.unsqueeze(1)
        return self.masks[key]


@dataclass
class AttentionBatch:
    """One pass over T packed tokens."""

    slots: Tensor  # [T] int64, where in the cache each token's key and value go
    unwritten_slots: Tensor  # [n] int64, the slots that the rows' last blocks have left
    groups: list[AttentionGroup]
    caches: dict[int, Tensor]  # layer -> [2, blocks, size, S * KV heads, head width]


def paged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    pad_batch: AttentionBatch,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [S, heads, T, width], key and value [S, KV heads, T, width] -> [S, T, heads, width].

    Tokens beyond the batch's slots are padding.
    """
    T = len(pad_batch.slots)
    cache = pad_batch.caches[module.layer_idx]
    flat = cache.flatten(1, 2)
    for half, new in zip(flat, (key, value), strict=True):
        half.index_copy_(0, pad_batch.slots, new[:, :, :T].permute(2, 0, 1, 3).flatten(1, 2))
    # They are masked, but what they held may be NaN, and 0 times NaN is NaN.
    flat.index_fill_(1, pad_batch.unwritten_slots, 0)
    packed = query.transpose(1, 2)  # [S, T, heads, width]
    out = torch.empty_like(packed, memory_format=torch.contiguous_format)
    out[:, T:] = 0
    for group in pad_batch.groups:
        attended = _group(packed, cache, group, scaling, sliding_window)
        if group.unpadded is None:
            out.index_copy_(1, group.token_index.flatten(), attended)
        else:
            places = group.token_index.flatten().index_select(0, group.unpadded)
            out.index_copy_(1, places, attended.index_select(1, group.unpadded))
    return out, None


def _group(
    packed: Tensor, cache: Tensor, group: AttentionGroup, scaling: float | None, window: int | None
) -> Tensor:
    """packed [S, T, heads, width], cache [2, blocks, size, S * KV heads, width] -> [S, R * Q, heads, width].

    Streams are heads, so that they share a mask. Query heads of one KV head are folded into the query
    dimension, so that keys are not repeated.
    """
    S, _, heads, width = packed.shape
    R, Q = group.token_index.shape
    kv = cache.shape[-2] // S
    q = packed.index_select(1, group.token_index.flatten()).view(S, R, Q, kv, heads // kv, width)
    q = q.permute(1, 0, 3, 4, 2, 5).reshape(R, S * kv, -1, width)
    k, v = (
        half.index_select(0, group.block_table.flatten()).view(R, -1, S * kv, width).transpose(1, 2)
        for half in cache
    )
    mask = group.mask(window, heads // kv)
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scaling)
    attended = attended.view(R, S, kv, heads // kv, Q, width).permute(1, 0, 4, 2, 3, 5)
    return attended.reshape(S, R * Q, heads, width)


AttentionInterface.register(ATTENTION_NAME, paged_attention)
