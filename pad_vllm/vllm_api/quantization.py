"""What vLLM quantises: the name of its method for weights, the type of its KV cache, which layers are packed.

In: a VllmConfig, a loaded layer. Leans on `quant_config` and its `get_name`, its `kv_cache_scheme`, and the
`quant_method` of a layer. Decides nothing.
"""

from __future__ import annotations

from typing import Any

from pad_vllm.vllm_api.vllm_names import UnquantizedLinearMethod, VllmConfig


def quantization_method(config: VllmConfig) -> str:
    """vLLM's name of the method that the model is quantised by; empty where it is not."""
    quantised: Any = config.quant_config
    return "" if quantised is None else str(quantised.get_name())


def kv_cache_dtype(config: VllmConfig) -> str:
    """The type of the KV cache: "auto" is the model's own."""
    given = str(config.cache_config.cache_dtype)
    if given == "auto" and getattr(config.quant_config, "kv_cache_scheme", None) is not None:
        return "fp8"  # what vLLM's attention layers make of the checkpoint's scheme
    return given


def is_quantized(layer: Any) -> bool:
    """Whether a linear layer computes with anything else than its plain weight."""
    how = getattr(layer, "quant_method", None)
    return how is not None and not isinstance(how, UnquantizedLinearMethod)
