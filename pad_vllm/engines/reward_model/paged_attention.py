"""Attention of packed rows of different lengths over one paged KV cache, as Transformers calls it.

A pass packs T tokens of many rows behind each other, in S streams (1 below the fork; 2 above: base and
reward). Rows of like size form a group and attend together, padded, under one mask: causal for a row's own
tokens; a candidate's token sees the row's tokens that the candidate keeps and its own ancestors.
In: q, k, v of one layer, and the AttentionBatch in the keyword arguments. Knows neither requests nor rewards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

ATTENTION_NAME = "pad_paged"
"""The name under which Transformers finds it, a model's attn_implementation."""


@dataclass
class AttentionGroup:
    """R rows that attend together: at most Q tokens each, over at most C key slots each."""

    token_index: (
        Tensor  # [R, Q] int64, index among the T tokens; padding repeats the row's first token
    )
    unpadded: (
        Tensor | None
    )  # [m] int64, indices among the R * Q that are no padding; None where all are
    block_table: Tensor  # [R, blocks] int64, blocks of each row, C = blocks * block size
    visible: Tensor  # [R, Q, C] bool, which key slots each token sees
    positions: Tensor  # [R, Q] int64, position of each token in its row
    node_slots: Tensor  # [n, 2] int64, of each candidate's token: slot among the R * C, position
    masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)  # made by `mask`

    @classmethod
    def build(
        cls,
        *,
        token_index: Tensor,
        unpadded: Tensor,
        block_table: Tensor,
        positions: Tensor,
        num_visible: Tensor,
        also_visible: Tensor,
        node_slots: Tensor,
        block_size: int,
    ) -> AttentionGroup:
        """Make the group's mask from what is known of its tokens. All tensors are int64, on the device.

        Args:
            token_index: [R, Q], as the field.
            unpadded: [m], as the field, also where nothing is padding.
            block_table: [R, blocks], as the field.
            positions: [R, Q], as the field.
            num_visible: [R, Q], how many of the row's first slots each token sees.
            also_visible: [k], indices among the R * Q * C: slots beyond those that a token sees too.
            node_slots: [n, 2], as the field.
            block_size: tokens in a block.
        """
        num_slots = block_table.shape[1] * block_size
        slots = torch.arange(num_slots, dtype=torch.int32, device=block_table.device)
        visible = slots < num_visible.int().unsqueeze(-1)
        visible.view(-1).index_fill_(0, also_visible, 1)
        without_padding = len(unpadded) == token_index.numel()
        return cls(
            token_index=token_index,
            unpadded=None if without_padding else unpadded,
            block_table=block_table,
            visible=visible,
            positions=positions,
            node_slots=node_slots,
        )

    def _slot_positions(self) -> Tensor:
        """[R, C] int64, position of the token in each key slot: a row's own tokens lie at theirs."""
        R, _, C = self.visible.shape
        slot_positions = torch.arange(C, device=self.visible.device).repeat(R)
        return slot_positions.index_copy_(0, *self.node_slots.unbind(1)).view(R, C)

    def mask(self, window: int | None, copies: int) -> Tensor:
        """[R, 1, copies * Q, C] bool under a sliding window of so many tokens; made once in a pass.

        Both streams and all KV heads share it. Rows of a group differ in Q by less than a factor of two, so
        that it has fewer than 2 * copies * C * (tokens of the pass) elements.
        """
        key = (window, copies)
        if key not in self.masks:
            visible = self.visible
            if window is not None:
                distance = self.positions.unsqueeze(-1) - self._slot_positions().unsqueeze(1)
                visible = visible & (distance < window)
            folded = visible if copies == 1 else visible.repeat(1, copies, 1)
            self.masks[key] = folded.unsqueeze(1)
        return self.masks[key]


@dataclass
class AttentionBatch:
    """One pass over T packed tokens."""

    slots: Tensor  # [T] int64, the cache slot of each token's key and value
    unwritten_slots: (
        Tensor  # [n] int64, slots of the rows' last blocks that this pass does not fill
    )
    groups: list[AttentionGroup]
    caches: dict[int, Tensor]  # layer -> [2, blocks, block size, S * KV heads, head width]


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
    """Write keys and values into the cache, and attend; Transformers calls it in every layer.

    Args:
        module: the attention module; its `layer_idx` says which cache is read.
        query: [S, heads, T, width]; tokens beyond the batch's slots are padding.
        key: [S, KV heads, T, width].
        value: [S, KV heads, T, width].
        pad_batch: the pass, from the keyword arguments of the model's forward.
        scaling: factor on the products; None for 1 / sqrt(width).
        sliding_window: how many tokens back a token sees; None for all.

    Returns:
        [S, T, heads, width], and None in the place of attention weights.
    """
    T = len(pad_batch.slots)
    cache = pad_batch.caches[module.layer_idx]
    flat_cache = cache.flatten(1, 2)  # [2, slots, S * KV heads, width]
    for half, new in zip(flat_cache, (key, value), strict=True):
        half.index_copy_(0, pad_batch.slots, new[:, :, :T].permute(2, 0, 1, 3).flatten(1, 2))
    # They are masked, but what they held may be NaN, and 0 times NaN is NaN.
    flat_cache.index_fill_(1, pad_batch.unwritten_slots, 0)
    packed = query.transpose(1, 2)  # [S, T, heads, width]
    output = torch.empty_like(packed, memory_format=torch.contiguous_format)
    output[:, T:] = 0
    for group in pad_batch.groups:
        attended = _attend_group(packed, cache, group, scaling, sliding_window)
        indices = group.token_index.flatten()
        if group.unpadded is not None:
            indices = indices.index_select(0, group.unpadded)
            attended = attended.index_select(1, group.unpadded)
        output.index_copy_(1, indices, attended)
    return output, None


def _attend_group(
    packed: Tensor,
    cache: Tensor,
    group: AttentionGroup,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """packed [S, T, heads, width], cache [2, blocks, size, S * KV heads, width] -> [S, R * Q, heads, width].

    Streams are treated as heads, so that they share a mask. Query heads of one KV head are folded into the
    query dimension, so that keys are not repeated.
    """
    S, _, heads, width = packed.shape
    R, Q = group.token_index.shape
    kv = cache.shape[-2] // S
    q = packed.index_select(1, group.token_index.flatten())
    q = q.view(S, R, Q, kv, heads // kv, width)
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
