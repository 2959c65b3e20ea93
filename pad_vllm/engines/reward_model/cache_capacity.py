"""How long a text a reward model can read: its backbone's positions, and the tokens that its KV cache holds.

In: a backbone's config, the adapter's fork layer, a type, the cache's size. Out: the bytes of a block; or a
ValueError where texts may become longer than that. It needs the config only, and reads no weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch

BLOCK_SIZE = 16
"""Tokens in a block."""

_GIB = 2**30


def cache_bytes(gib: float) -> int:
    """Bytes of a cache of `gib` GiB."""
    return int(gib * _GIB)


def block_bytes(config: Any, fork_layer: int, dtype: torch.dtype) -> int:
    """Bytes of one block: keys and values of its tokens in every layer, and in forked layers twice.

    Args:
        config: the backbone's Transformers config.
        fork_layer: first layer with two streams; the number of layers where nothing is forked.
        dtype: type of the cache.
    """
    layer_caches = fork_layer + 2 * (config.num_hidden_layers - fork_layer)
    numbers = layer_caches * config.num_key_value_heads * head_dim(config)
    return BLOCK_SIZE * 2 * numbers * dtype.itemsize


def head_dim(config: Any) -> int:
    """Numbers in one head's key."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def require_capacity(
    config: Any, fork_layer: int, dtype: torch.dtype, gib: float, length: int
) -> None:
    """Check that the reward model can read texts of `length` tokens.

    A row that outgrows the reward model would go on unguided in the middle of its answer.

    Args:
        config: the backbone's Transformers config.
        fork_layer: first layer with two streams.
        dtype: type of the cache.
        gib: size of the cache (`cache_gib`).
        length: the base's max_model_len. A text may have more or fewer tokens of another tokenizer; this
            counts one for one.

    Raises:
        ValueError: positions or cache are too few; the message names both, and what to set.
    """
    positions = int(config.max_position_embeddings)
    bytes_per_block = block_bytes(config, fork_layer, dtype)
    holds = cache_bytes(gib) // bytes_per_block * BLOCK_SIZE
    ways = []
    if holds < length:
        needed_bytes = math.ceil(length / BLOCK_SIZE) * bytes_per_block
        enough = math.ceil(1000 * needed_bytes / _GIB) / 1000
        ways.append(f"cache_gib {enough:g} in additional_config['pad']")
    if positions < length:
        ways.append("an adapter trained on a backbone with more positions")
    if ways:
        raise ValueError(
            f"the base's max_model_len of {length} is more than its reward model reads: that has "
            f"{positions} positions and a KV cache of {gib:g} GiB (cache_gib), which holds {holds} tokens. "
            f"Start with --max-model-len {min(positions, holds)}, or with {' and '.join(ways)}."
        )
