"""The linear layers of a decoder layer that may carry LoRA: one table for PEFT, Transformers and vLLM.

Widths are names here; `shapes.py` takes their sizes from a base's config. Knows no tensor.
"""

from __future__ import annotations

from typing import NamedTuple


class LinearModule(NamedTuple):
    """One linear layer, the same in every decoder layer."""

    parent: str
    """The part of a decoder layer that holds it."""

    vllm_layer: str
    """vLLM's layer that computes it, alone or with others in the table's order."""

    input_width: str
    """The width it reads: hidden, queries or inner."""

    output_width: str
    """The width it writes: hidden, queries, keys or inner."""


LINEAR_MODULES = {
    "q_proj": LinearModule("self_attn", "qkv_proj", "hidden", "queries"),
    "k_proj": LinearModule("self_attn", "qkv_proj", "hidden", "keys"),
    "v_proj": LinearModule("self_attn", "qkv_proj", "hidden", "keys"),
    "o_proj": LinearModule("self_attn", "o_proj", "queries", "hidden"),
    "gate_proj": LinearModule("mlp", "gate_up_proj", "hidden", "inner"),
    "up_proj": LinearModule("mlp", "gate_up_proj", "hidden", "inner"),
    "down_proj": LinearModule("mlp", "down_proj", "inner", "hidden"),
}


def packed_modules(parent: str) -> dict[str, tuple[str, ...]]:
    """vLLM's linear layers of one part of a decoder layer -> the modules each packs, in order."""
    packed: dict[str, tuple[str, ...]] = {}
    for name, module in LINEAR_MODULES.items():
        if module.parent == parent:
            packed[module.vllm_layer] = (*packed.get(module.vllm_layer, ()), name)
    return packed
