"""Learned prefixes of an adapter: keys and values that the reward stream reads in front of a text.

In: tensors. Out: a LearnedPrefix, from and to PEFT's prefix-tuning format: the names and the layout of
adapter_config.json and adapter_model.safetensors, with the layers from the fork layer up. Reads and writes no
files (adapter_folder.py does). Knows nothing of how a prefix was learned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.wording import first_listed, short_repr

PREFIX_TENSOR = "prompt_embeddings"
"""PEFT's name: [P, layers * 2 * KV heads * width], of every virtual token the first layer's key, its value,
the second layer's key, and so on.
"""


@dataclass(frozen=True, eq=False)
class LearnedPrefix:
    """Keys and values of P virtual tokens in each of the F layers from a fork layer up.

    They are as attention reads them, rotated for the positions -P to -1 in front of a text that begins at
    position 0. Raises AdapterError for other shapes and for numbers that are not finite.
    """

    keys: Tensor
    """[F, KV heads, P, width]."""

    values: Tensor
    """The same."""

    def __post_init__(self) -> None:
        if self.keys.ndim != 4 or self.keys.shape != self.values.shape:
            raise AdapterError(
                f"a learned prefix has keys {list(self.keys.shape)} and values "
                f"{list(self.values.shape)}; accepted: [layers, KV heads, tokens, width] of both. Save the "
                "adapter again."
            )
        if not (torch.isfinite(self.keys).all() and torch.isfinite(self.values).all()):
            raise AdapterError(
                "a learned prefix holds NaN or infinity; accepted: finite numbers. Training diverged: train "
                "it again, with a lower learning rate."
            )

    @property
    def num_tokens(self) -> int:
        """P."""
        return self.keys.shape[2]

    @cached_property
    def digest(self) -> str:
        """sha256 over the tensors in float32, as hex digits: the name by which workers know a prefix."""
        digest = hashlib.sha256()
        for tensor in (self.keys, self.values):
            digest.update(f"{tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
        return digest.hexdigest()

    def heads_of_rank(self, rank: int, num_ranks: int, num_heads: int) -> LearnedPrefix:
        """The part of one rank of tensor parallelism, split as vLLM splits KV heads.

        num_heads: KV heads of one rank; where there are fewer heads than ranks, neighbours have the same one.
        """
        first = rank * self.keys.shape[1] // num_ranks
        own = slice(first, first + num_heads)
        return LearnedPrefix(self.keys[:, own], self.values[:, own])


def peft_prefix_settings(prefix: LearnedPrefix, *, backbone: str) -> dict[str, Any]:
    """The content of adapter_config.json. backbone: its name."""
    F, heads, P, width = prefix.keys.shape
    return {
        "base_model_name_or_path": backbone,
        "inference_mode": True,
        "num_attention_heads": heads,
        "num_layers": F,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": P,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "task_type": "CAUSAL_LM",
        "token_dim": heads * width,
    }


def peft_prefix_tensors(prefix: LearnedPrefix) -> dict[str, Tensor]:
    """The tensors of adapter_model.safetensors."""
    both = torch.stack((prefix.keys, prefix.values), dim=1)  # [F, 2, heads, P, width]
    return {PREFIX_TENSOR: both.permute(3, 0, 1, 2, 4).flatten(1)}


def prefix_from_peft(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], *, num_layers: int, num_tokens: int
) -> LearnedPrefix:
    """The prefix that PEFT's settings and tensors describe.

    Args:
        settings: Content of adapter_config.json.
        tensors: Content of adapter_model.safetensors.
        num_layers: F, as pad_config.json says.
        num_tokens: P, likewise.

    Raises:
        AdapterError: They describe something else, or do not fit each other.
    """
    expected = {
        "peft_type": "PREFIX_TUNING",
        "num_layers": num_layers,
        "num_virtual_tokens": num_tokens,
        "prefix_projection": False,
    }
    for name, accepted in expected.items():
        value = settings.get(name, False if name == "prefix_projection" else None)
        if value != accepted:
            raise AdapterError(
                f"a learned prefix's {name} is {short_repr(value)}; accepted: {short_repr(accepted)}, as "
                "the adapter's pad_config.json says. Copy the whole folder."
            )
    heads, width = settings.get("num_attention_heads"), settings.get("token_dim")
    if type(heads) is not int or type(width) is not int or heads < 1 or width < 1 or width % heads:
        raise AdapterError(
            f"a learned prefix's num_attention_heads is {short_repr(heads)} and its token_dim "
            f"{short_repr(width)}; accepted: whole numbers, the second a multiple of the first."
        )
    if set(tensors) != {PREFIX_TENSOR}:
        raise AdapterError(
            f"a learned prefix has the tensors {first_listed(sorted(tensors))}; accepted: {PREFIX_TENSOR} "
            "alone."
        )
    embeddings = tensors[PREFIX_TENSOR]
    shape = (num_tokens, num_layers * 2 * width)
    if tuple(embeddings.shape) != shape:
        raise AdapterError(
            f"a learned prefix's {PREFIX_TENSOR} has shape {list(embeddings.shape)}; accepted: "
            f"{list(shape)}, as its adapter_config.json says."
        )
    both = embeddings.view(num_tokens, num_layers, 2, heads, width // heads)
    keys, values = both.permute(2, 1, 3, 0, 4).contiguous()
    return LearnedPrefix(keys, values)
