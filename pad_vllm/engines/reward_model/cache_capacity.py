"""How long a text a reward model reads: its backbone's positions, and what its KV cache holds.

In: a backbone's config, the adapter's fork layer, a type, a cache's size. Out: the bytes of a block; or a
ValueError where texts may become longer. Told by the config alone, before any weight is read.
"""

from __future__ import annotations

import math
from typing import Any

import torch

BLOCK_SIZE = 16
"""Tokens a block."""

_GIB = 2**30


def cache_bytes(gib: float) -> int:
    """Of a cache of so many GiB."""
    return int(gib * _GIB)


def block_bytes(config: Any, fork: int, dtype: torch.dtype) -> int:
    """Keys and values of a block's tokens in every layer, in forked ones twice."""
    streams = fork + 2 * (config.num_hidden_layers - fork)
    return BLOCK_SIZE * 2 * streams * config.num_key_value_heads * head_dim(config) * dtype.itemsize


def head_dim(config: Any) -> int:
    """Numbers in a head's key."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def require_capacity(config: Any, fork: int, dtype: torch.dtype, gib: float, length: int) -> None:
    """Raises ValueError unless texts of `length` tokens fit: a row that outgrows the reward model would go
    on unguided in the middle of its answer.
    """
    # With another tokenizer a text has more or fewer of the reward model's tokens: as if one for one.
    positions, each = int(config.max_position_embeddings), block_bytes(config, fork, dtype)
    holds = cache_bytes(gib) // each * BLOCK_SIZE
    ways = []
    if holds < length:
        enough = math.ceil(1000 * math.ceil(length / BLOCK_SIZE) * each / _GIB) / 1000
        ways.append(f"cache_gib {enough:g} in additional_config['pad']")
    if positions < length:
        ways.append("an adapter trained on a backbone with more positions")
    if ways:
        raise ValueError(
            f"the base's max_model_len of {length} is more than its reward model reads: that has "
            f"{positions} positions and a KV cache of {gib:g} GiB (cache_gib), which holds {holds} tokens. "
            f"Start with --max-model-len {min(positions, holds)}, or with {' and '.join(ways)}."
        )
