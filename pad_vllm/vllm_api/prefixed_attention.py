"""Attention that reads reserved KV blocks in front of a request's own.

A subclass of a layer's attention backend whose metadata builder changes what vLLM says of a batch: the block
table of a row is its prefix, then the request's; its sequence is longer by the prefix; where keys are written
stays. Both runners then build the metadata of such layers on their own, beside those of the plain layers:
attention backends and their builders (vllm/v1/attention/backend.py) are vLLM's extension point. For captured
graphs the changed tensors have fixed addresses. Knows nothing of instructions or rewards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

PREFIXED_BACKENDS = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN")
"""Names of the backends that are accepted: they take block tables wider than a request's."""


class PrefixTable(Protocol):
    """Says which reserved blocks the rows of a batch read."""

    @property
    def block_size(self) -> int:
        """Tokens of a block of the KV cache manager."""

    @property
    def num_reserved_blocks(self) -> int:
        """The last blocks of the cache, which the manager does not have."""

    @property
    def max_prefix_blocks(self) -> int:
        """The most that a row reads."""

    def prefix_blocks(self, batch_slots: Sequence[int]) -> np.ndarray | None:
        """[R, max_prefix_blocks] int32 for the requests in R batch slots: numbers among the reserved blocks,
        -1 behind a row's last; None where no row reads any.
        """


@cache
def prefixed_backend(backend: Any) -> Any:
    """A subclass of an attention backend, whose builders change the batch's metadata.

    A layer with this backend needs an attribute `pad_prefix_table`.
    """
    builder = type(
        f"Prefixed{backend.get_builder_cls().__name__}",
        (_PrefixedBuilder, backend.get_builder_cls()),
        {},
    )
    name = f"Prefixed{backend.__name__}"
    return type(name, (backend,), {"get_builder_cls": staticmethod(lambda: builder)})


def plain_backend(layer: Any) -> Any:
    """The backend of a layer, without prefixes."""
    backend = layer.get_attn_backend()
    return backend.__base__ if hasattr(layer, "pad_prefix_table") else backend


def reserved_kernel_blocks(
    kv_cache: Tensor, blocks: np.ndarray, *, num_reserved: int, ratio: int
) -> np.ndarray:
    """Ids by which kernels know reserved blocks.

    Args:
        kv_cache: of a layer, [kernel blocks, ...]; the reserved ones are the last.
        blocks: [..., B] integers, numbers among the reserved blocks.
        num_reserved: how many blocks are reserved.
        ratio: kernel blocks of a block of the KV cache manager.

    Returns:
        [..., B * ratio] int32.
    """
    first = kv_cache.shape[0] - num_reserved * ratio
    kernel = blocks[..., None] * ratio + np.arange(ratio)
    return (first + kernel).reshape(*blocks.shape[:-1], -1).astype(np.int32)


class _PrefixedBuilder:
    """Mixin for an AttentionMetadataBuilder, in front of it."""

    def __init__(
        self,
        kv_cache_spec: Any,
        layer_names: list[str],
        vllm_config: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, *args, **kwargs)  # type: ignore[call-arg]
        self._layer = vllm_config.compilation_config.static_forward_context[layer_names[0]]
        self._table: PrefixTable = self._layer.pad_prefix_table
        self._kernel_size = kv_cache_spec.block_size  # tokens
        self._max_rows = vllm_config.scheduler_config.max_num_seqs
        self._buffers: dict[str, Tensor] = {}

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """The backend's metadata of the changed batch."""
        changed = self._with_prefixes(common_attn_metadata)
        return super().build(common_prefix_len, changed, *args, **kwargs)  # type: ignore[misc]

    def _with_prefixes(self, common: Any) -> Any:
        slots = common.req_idx
        slots = range(common.num_reqs) if slots is None else slots[: common.num_reqs]
        blocks = self._table.prefix_blocks([int(slot) for slot in slots])
        own = common.block_table_tensor
        if blocks is None:
            if own.device.type == "cpu":  # without captured graphs
                return common
            blocks = np.full((0, self._table.max_prefix_blocks), -1, np.int32)
        prefixes, counts = self._kernel_blocks(blocks, len(own))
        width, num_prefix = own.shape[1], prefixes.shape[1]
        table = self._buffer("table", len(own), width + num_prefix)
        column = torch.arange(width + num_prefix, device=own.device) - counts.unsqueeze(-1)
        table.copy_(own.gather(1, column.clamp(0, width - 1)))
        first = table[:, :num_prefix]
        first.copy_(torch.where(column[:, :num_prefix] < 0, prefixes, first))
        lengths = counts * self._kernel_size
        seq_lens = self._buffer("lengths", len(common.seq_lens))
        # A row of a padded graph has no tokens, and stays empty.
        torch.add(common.seq_lens, lengths[: len(seq_lens)].to(seq_lens.dtype), out=seq_lens)
        changes = {
            "block_table_tensor": table,
            "seq_lens": seq_lens,
            "max_seq_len": common.max_seq_len + num_prefix * self._kernel_size,
            "_num_computed_tokens_cache": None,
        }
        if (bound := common.seq_lens_cpu_upper_bound) is not None:
            changes["seq_lens_cpu_upper_bound"] = bound + self._host_lengths(blocks, len(bound))
        return dataclasses.replace(common, **changes)

    def _kernel_blocks(self, blocks: np.ndarray, num_rows: int) -> tuple[Tensor, Tensor]:
        """[R, P] int32 ids of kernel blocks and [R] int64 numbers of them, on the device.

        blocks: [up to R, prefix blocks] as `prefix_blocks` returns them.
        """
        kv_cache, ratio = self._layer.kv_cache, self._table.block_size // self._kernel_size
        padded = np.full((num_rows, blocks.shape[1]), -1, np.int32)
        padded[: len(blocks)] = blocks
        num_reserved = self._table.num_reserved_blocks
        # What stands behind a row's last block is not read.
        ids = reserved_kernel_blocks(
            kv_cache, padded.clip(0), num_reserved=num_reserved, ratio=ratio
        )
        counts = (padded >= 0).sum(1) * ratio
        both = torch.from_numpy(np.concatenate((ids, counts[:, None]), 1).astype(np.int32))
        if kv_cache.device.type == "cuda":
            both = both.pin_memory()
        both = both.to(kv_cache.device, non_blocking=True)
        return both[:, :-1], both[:, -1].long()

    def _host_lengths(self, blocks: np.ndarray, num_rows: int) -> Tensor:
        lengths = torch.zeros(num_rows, dtype=torch.int32)
        lengths[: len(blocks)] = torch.from_numpy((blocks >= 0).sum(1) * self._table.block_size)
        return lengths

    def _buffer(self, name: str, rows: int, *width: int) -> Tensor:
        """[rows, *width] int32, at one address for all batches of up to max_num_seqs rows."""
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < rows or buffer.shape[1:] != width:
            shape = (max(rows, self._max_rows), *width)
            buffer = torch.zeros(shape, dtype=torch.int32, device=self._layer.kv_cache.device)
            self._buffers[name] = buffer
        return buffer[:rows]
