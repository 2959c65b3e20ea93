"""The decoder layers that a base's config describes, and whether an adapter's parts fit them.

In: a Transformers config, an adapter. Out: shapes and kinds of attention; an AdapterError for a misfit.
It reads no weights and imports no vLLM, so that a misfit is refused before a model is loaded.
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
    """Module -> (out, in) of the linear layers that may carry LoRA, the same in every layer."""
    text = config.get_text_config()
    H = text.hidden_size
    head = getattr(text, "head_dim", None) or H // text.num_attention_heads
    widths = {
        "hidden": H,
        "inner": text.intermediate_size,
        "queries": text.num_attention_heads * head,
        "keys": text.num_key_value_heads * head,
    }
    return {
        name: (widths[module.output_width], widths[module.input_width])
        for name, module in LINEAR_MODULES.items()
    }


def require_lora_shapes(adapter: Adapter, config: Any) -> None:
    """Raises AdapterError where the LoRA's matrices do not fit the base's linear layers."""
    # Of a base without a LoRA on it nothing is asked: it may have other linear layers.
    shapes = module_shapes(config) if adapter.lora.weights else {}
    for (layer, module), (a, b) in sorted(adapter.lora.weights.items()):
        given, wanted = (b.shape[0], a.shape[1]), shapes[module]
        if given != wanted:
            raise AdapterError(
                f"LoRA of layer {layer} {module} is for a weight of shape {list(given)}, and the "
                f"base has {list(wanted)}. Serve the adapter's own backbone, or train one on this "
                "base."
            )


def attention_kinds(config: Any) -> list[str]:
    """The kind of attention of every decoder layer."""
    text = config.get_text_config()
    return list(getattr(text, "layer_types", None) or ["attention"] * text.num_hidden_layers)


def require_even_attention_split(kinds: Sequence[object], fork: int) -> None:
    """Raises AdapterError unless the layers above the fork have the same proportions of attention kinds
    as those below: vLLM would pad its KV cache groups.

    kinds: one hashable value a layer of the model. At the top there are none above, which is always accepted.
    """
    accepted = [layer for layer in range(len(kinds) + 1) if _even(kinds, layer)]
    if fork not in accepted:
        raise AdapterError(
            f"fork layer {fork} cuts the base's pattern of sliding-window and full attention. "
            f"Accepted fork layers: {listed(map(str, accepted))}. Train the adapter with one of "
            "these."
        )


def _even(kinds: Sequence[object], fork: int) -> bool:
    lower, upper = kinds[:fork], kinds[fork:]
    return all(
        lower.count(kind) * len(upper) == upper.count(kind) * len(lower) for kind in set(kinds)
    )
