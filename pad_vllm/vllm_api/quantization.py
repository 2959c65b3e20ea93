"""What vLLM quantises: its method for the weights, the dtype of the KV cache, whether a layer's weight is
packed.

In: a VllmConfig, or a loaded layer. Uses `quant_config`, its `get_name` and `kv_cache_scheme`, and a layer's
`quant_method`. Decides nothing.
"""

from __future__ import annotations

from typing import Any

from pad_vllm.vllm_api.vllm_names import UnquantizedLinearMethod, VllmConfig


def quantization_method(config: VllmConfig) -> str:
    """vLLM's name of the method that quantises the model's weights; empty for an unquantised model."""
    quant_config: Any = config.quant_config
    return "" if quant_config is None else str(quant_config.get_name())


def kv_cache_dtype(config: VllmConfig) -> str:
    """vLLM's name of the KV cache's dtype; "auto" is the model's own."""
    name = str(config.cache_config.cache_dtype)
    if name == "auto" and getattr(config.quant_config, "kv_cache_scheme", None) is not None:
        return "fp8"  # what vLLM's attention layers use for a checkpoint with a scheme
    return name


def is_quantized(layer: Any) -> bool:
    """Whether a linear layer computes with anything other than its plain weight."""
    quant_method = getattr(layer, "quant_method", None)
    return quant_method is not None and not isinstance(quant_method, UnquantizedLinearMethod)
