"""The linear layers of a decoder layer that may carry LoRA: one table for PEFT, Transformers and vLLM.

Widths are names here; `shape_checks.py` takes their sizes from a base's config. This module holds no tensor.
"""

from __future__ import annotations

from typing import NamedTuple


class LinearModule(NamedTuple):
    """One linear layer of a decoder layer. Every decoder layer has the same ones."""

    parent: str
    """Submodule of the decoder layer that holds it: self_attn or mlp."""

    vllm_layer: str
    """vLLM's linear layer that computes it, alone or packed with others in the order of LINEAR_MODULES."""

    input_width: str
    """Name of its input width: hidden, queries or inner."""

    output_width: str
    """Name of its output width: hidden, queries, keys or inner."""


LINEAR_MODULES = {
    "q_proj": LinearModule("self_attn", "qkv_proj", "hidden", "queries"),
    "k_proj": LinearModule("self_attn", "qkv_proj", "hidden", "keys"),
    "v_proj": LinearModule("self_attn", "qkv_proj", "hidden", "keys"),
    "o_proj": LinearModule("self_attn", "o_proj", "queries", "hidden"),
    "gate_proj": LinearModule("mlp", "gate_up_proj", "hidden", "inner"),
    "up_proj": LinearModule("mlp", "gate_up_proj", "hidden", "inner"),
    "down_proj": LinearModule("mlp", "down_proj", "inner", "hidden"),
}
"""Name of the module in Transformers and PEFT -> where it is and its widths."""


def packed_modules(parent: str) -> dict[str, tuple[str, ...]]:
    """vLLM's linear layers under `parent` (self_attn or mlp) -> the modules that each packs, in order."""
    packed: dict[str, tuple[str, ...]] = {}
    for name, module in LINEAR_MODULES.items():
        if module.parent == parent:
            packed[module.vllm_layer] = (*packed.get(module.vllm_layer, ()), name)
    return packed
