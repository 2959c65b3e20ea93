"""Writes an instruction into KV blocks of our choice, between two steps, with the served model.

A learned prefix is written as it is. A sentence is read by one eager forward of one sequence over all layers
(vllm/forward_context.py), which ends at position -1, so that it stands in front of any request. Every
attention layer writes what it reads into these blocks; then those with prefixes write the keys and values
that are kept over it, by the backend's own update (vllm/v1/attention/backend.py), which knows the cache's
layout. Rotary layers look positions up in a table, which has no negative ones: while the text is read their
table holds the sines negated, and the positions are T .. 1. Knows nothing of rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import CUDAGraphMode
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

from pad_vllm.adapter.learned_prefix import LearnedPrefix
from pad_vllm.instruction import Instruction, InstructionTokens, LearnedInstruction
from pad_vllm.vllm_api.parallel_ranks import tp_rank_and_size
from pad_vllm.vllm_api.prefixed_attention import plain_backend, reserved_kernel_blocks
from pad_vllm.vllm_api.vllm_names import Attention, VllmConfig

_TABLES = ("cos_sin_cache", "cos_sin_cache_bf16")
"""Buffers of vLLM's rotary embeddings: [positions, width], cosines in the first half, sines in the second."""


class InstructionForward:
    """Reads instructions into the last blocks of a loaded model's KV cache."""

    def __init__(
        self,
        model: nn.Module,
        config: VllmConfig,
        num_reserved_blocks: Callable[[int], int],
        find_learned: Callable[[str], LearnedPrefix],
    ) -> None:
        """Nothing is read yet, and the KV cache need not exist.

        Args:
            model: the served causal language model, forked.
            config: of its engine.
            num_reserved_blocks: for the tokens of a block, which are known when the model is loaded: how many
                blocks at the cache's end are ours.
            find_learned: the learned prefix of a digest; may raise KeyError.
        """
        # A weak reference: the model owns what calls this.
        self._model, self._config = ref(model), config
        self._num_reserved_blocks, self._find_learned = num_reserved_blocks, find_learned

    @torch.inference_mode()
    def __call__(self, instruction: Instruction, blocks: Sequence[int]) -> None:
        """Write the prefix of `instruction` into `blocks`, numbers among the reserved ones, which have places
        for all that it takes (`num_places`).
        """
        if isinstance(instruction, LearnedInstruction):
            self._write(self._find_learned(instruction.digest), blocks)
        else:
            self._read(instruction, blocks)

    def _write(self, prefix: LearnedPrefix, blocks: Sequence[int]) -> None:
        model = self._model()
        assert model is not None
        layers = [layer for layer in _attention_layers(model) if _has_prefixes(layer)]
        rank, num_ranks = tp_rank_and_size()
        own = prefix.heads_of_rank(rank, num_ranks, layers[0].num_kv_heads)
        places: dict[Any, Tensor] = {}  # by the shape of a layer's cache
        for layer, keys, values in zip(layers, own.keys, own.values, strict=True):
            cache = layer.kv_cache
            if cache.shape not in places:
                table = self._block_table(blocks, cache)
                places[cache.shape] = _places(table, _kernel_size(cache))[: own.num_tokens]
            _write_keys(layer, keys.transpose(0, 1), values.transpose(0, 1), places[cache.shape])

    def _read(self, instruction: InstructionTokens, blocks: Sequence[int]) -> None:
        tokens = instruction.text
        kept = instruction.kept(self._config.cache_config.block_size)
        model = self._model()
        assert model is not None
        layers = {layer.layer_name: layer for layer in _attention_layers(model)}
        device = next(model.parameters()).device
        input_ids = torch.tensor(tokens, device=device)
        metadata: dict[str, Any] = {}
        slots: dict[str, Tensor] = {}
        places: dict[str, Tensor] = {}
        groups: dict[Any, list[str]] = {}
        for name, layer in layers.items():
            groups.setdefault((plain_backend(layer), layer.kv_cache.shape[0]), []).append(name)
        for (backend, _), names in groups.items():
            kv_cache = layers[names[0]].kv_cache
            spec = layers[names[0]].get_kv_cache_spec(self._config)
            spec = spec.copy_with_new_block_size(_kernel_size(kv_cache))
            builder = backend.get_builder_cls()(spec, names, self._config, device)
            table = self._block_table(blocks, kv_cache)
            all_places = _places(table, spec.block_size)
            common = _one_sequence(len(tokens), table, all_places)
            metadata |= dict.fromkeys(names, builder.build(0, common))
            slots |= dict.fromkeys(names, common.slot_mapping)
            places |= dict.fromkeys(names, all_places)
        with (
            _recorded_keys(layers.values()) as recorded,
            _negated_rotations(model, len(tokens)),
            set_forward_context(
                metadata,
                self._config,
                num_tokens=len(tokens),
                cudagraph_runtime_mode=CUDAGraphMode.NONE,
                slot_mapping=slots,
                skip_compiled=True,
            ),
        ):
            positions = torch.arange(len(tokens), 0, -1, device=device)
            model(input_ids=input_ids, positions=positions)
        index = torch.tensor(kept, device=device)
        for layer, (keys, values) in recorded.items():
            _write_keys(layer, keys[index], values[index], places[layer.layer_name][: len(kept)])

    def _block_table(self, blocks: Sequence[int], kv_cache: Tensor) -> Tensor:
        """[1, kernel blocks] of the sequence that has reserved blocks, in a layer's cache."""
        block_size = self._config.cache_config.block_size
        ids = reserved_kernel_blocks(
            kv_cache,
            np.asarray([blocks]),
            num_reserved=self._num_reserved_blocks(block_size),
            ratio=block_size // _kernel_size(kv_cache),
        )
        return torch.from_numpy(ids).to(kv_cache.device)


def _attention_layers(model: nn.Module) -> list[Attention]:
    """From the bottom up. Not those of a draft model, which are in the same cache."""
    return [module for module in model.modules() if isinstance(module, Attention)]


def _has_prefixes(layer: Attention) -> bool:
    return hasattr(layer, "pad_prefix_table")


def _write_keys(layer: Attention, keys: Tensor, values: Tensor, places: Tensor) -> None:
    """Write keys and values [T, KV heads, width], of any dtype and device, into T places of the cache."""
    cache = layer.kv_cache
    keys, values = (one.to(cache.device, cache.dtype).contiguous() for one in (keys, values))
    layer.impl.do_kv_cache_update(layer, keys, values, cache, places)


def _one_sequence(num_tokens: int, table: Tensor, places: Tensor) -> CommonAttentionMetadata:
    """The metadata of one sequence that starts now.

    Args:
        num_tokens: of the sequence.
        table: [1, kernel blocks] of the sequence.
        places: all slots of these blocks, num_tokens of them at least.
    """
    length = torch.tensor([num_tokens], dtype=torch.int32)
    starts = torch.tensor([0, num_tokens], dtype=torch.int32)
    return CommonAttentionMetadata(
        query_start_loc=starts.to(table.device),
        query_start_loc_cpu=starts,
        seq_lens=length.to(table.device),
        seq_lens_cpu_upper_bound=length,
        num_reqs=1,
        num_actual_tokens=num_tokens,
        max_query_len=num_tokens,
        max_seq_len=num_tokens,
        block_table_tensor=table,
        slot_mapping=places[:num_tokens],
        positions=torch.arange(num_tokens, device=table.device),
        is_prefilling=torch.tensor([True]),
    )


def _places(table: Tensor, kernel_size: int) -> Tensor:
    """[kernel blocks * kernel_size] int64: the slots of a sequence's blocks in the cache, in order."""
    within = torch.arange(kernel_size, device=table.device)
    return (table[0].long().unsqueeze(-1) * kernel_size + within).flatten()


def _kernel_size(kv_cache: Tensor) -> int:
    """Tokens of a kernel block."""
    return int(kv_cache.shape[2])


@contextmanager
def _recorded_keys(layers: Iterable[Attention]) -> Iterator[dict[Attention, tuple[Tensor, Tensor]]]:
    """Within it, keys and values [T, KV heads, width] that layers with prefixes are given are recorded."""
    recorded: dict[Attention, tuple[Tensor, Tensor]] = {}

    def record(layer: Attention, inputs: tuple[Tensor, ...]) -> None:
        _, keys, values = inputs
        shape = len(keys), layer.num_kv_heads, -1
        recorded[layer] = keys.view(shape), values.view(shape)

    hooks = [layer.register_forward_pre_hook(record) for layer in layers if _has_prefixes(layer)]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _negated_rotations(model: nn.Module, num_positions: int) -> Iterator[None]:
    """Within it, rotary layers rotate backwards, by -p at position p, up to `num_positions`."""
    saved = [
        (module, name, table)
        for module in model.modules()
        for name in _TABLES
        if (table := getattr(module, name, None)) is not None
    ]
    for module, name, table in saved:
        cosines, sines = table[: num_positions + 1].chunk(2, dim=-1)
        setattr(module, name, torch.cat((cosines, -sines), dim=-1))
    try:
        yield
    finally:
        for module, name, table in saved:
            setattr(module, name, table)
