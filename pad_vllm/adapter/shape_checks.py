"""Checks whether an adapter's LoRA, learned prefixes and fork layer fit the layers of a base's config.

In: a Transformers config, an adapter. Out: shapes and kinds of attention; an AdapterError where the adapter
does not fit. This module reads no weights and imports no vLLM, so the check runs before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.adapter.lora_modules import LINEAR_MODULES
from pad_vllm.wording import listed

if TYPE_CHECKING:
    from pad_vllm.adapter.adapter import Adapter


def module_shapes(config: Any) -> dict[str, tuple[int, int]]:
    """Module -> (out, in) of each linear layer that may carry LoRA; the same in every decoder layer."""
    text_config = config.get_text_config()
    H = text_config.hidden_size
    head_dim = _head_width(text_config)
    widths = {
        "hidden": H,
        "inner": text_config.intermediate_size,
        "queries": text_config.num_attention_heads * head_dim,
        "keys": text_config.num_key_value_heads * head_dim,
    }
    return {
        name: (widths[module.output_width], widths[module.input_width])
        for name, module in LINEAR_MODULES.items()
    }


def _head_width(text_config: Any) -> int:
    own: int | None = getattr(text_config, "head_dim", None)
    return own or text_config.hidden_size // text_config.num_attention_heads


def require_lora_shapes(adapter: Adapter, config: Any) -> None:
    """Raises AdapterError where the LoRA's matrices do not fit the linear layers of the base's config."""
    # A heads-only adapter has no LoRA, so the base may have other linear layers than LINEAR_MODULES.
    base_shapes = module_shapes(config) if adapter.lora.weights else {}
    for (layer, module), (a, b) in sorted(adapter.lora.weights.items()):
        lora_shape, base_shape = (b.shape[0], a.shape[1]), base_shapes[module]
        if lora_shape != base_shape:
            raise AdapterError(
                f"LoRA of layer {layer} {module} is for a weight of shape {list(lora_shape)}, and the "
                f"base has {list(base_shape)}. Serve the adapter's own backbone, or train one on this "
                "base."
            )


def require_prefix_shapes(adapter: Adapter, config: Any) -> None:
    """Raises AdapterError where a learned prefix does not fit the KV heads of the base's config."""
    text_config = config.get_text_config()
    heads = text_config.num_key_value_heads if adapter.prefixes else 0
    for name, prefix in adapter.prefixes.items():
        found = prefix.keys.shape[1], prefix.keys.shape[3]
        base = heads, _head_width(text_config)
        if found != base:
            raise AdapterError(
                f"the learned prefix {name} has {found[0]} KV heads of width {found[1]}, and the base has "
                f"{base[0]} of {base[1]}. Serve the adapter's own backbone, or train one on this base."
            )


def attention_kinds(config: Any) -> list[str]:
    """The kind of attention of every decoder layer, such as sliding_attention, from the bottom up."""
    text_config = config.get_text_config()
    layer_types = getattr(text_config, "layer_types", None)
    return list(layer_types or ["attention"] * text_config.num_hidden_layers)


def require_even_attention_split(kinds: Sequence[object], fork: int) -> None:
    """Raises AdapterError unless the layers above and below the fork have equal shares of attention kinds.

    With other proportions vLLM would pad its KV cache groups. A fork at the top has no layers above it and is
    always accepted.

    kinds: one hashable value per decoder layer.
    """
    accepted = [layer for layer in range(len(kinds) + 1) if _splits_evenly(kinds, layer)]
    if fork not in accepted:
        raise AdapterError(
            f"fork layer {fork} cuts the base's pattern of sliding-window and full attention. "
            f"Accepted fork layers: {listed(map(str, accepted))}. Train the adapter with one of "
            "these."
        )


def _splits_evenly(kinds: Sequence[object], fork: int) -> bool:
    lower, upper = kinds[:fork], kinds[fork:]
    return all(
        lower.count(kind) * len(upper) == upper.count(kind) * len(lower) for kind in set(kinds)
    )
