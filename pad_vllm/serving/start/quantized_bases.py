"""Quantised bases: how a checkpoint was quantised, and which methods the shared engine forks.

In: a Transformers config, or the name of a method. Out: what config.json says, or a ValueError.

A fork needs only that a layer computes each row independently of the others, which is checked when the model
is loaded (engines/shared/row_independence_check.py). It adds the LoRA to the output of the layer's own
forward, so that PAD unpacks no weight. A method that is not named here has not been examined. Heads only
need nothing but a plain lm_head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pad_vllm.wording import listed

TESTED_METHODS = ("compressed-tensors",)
"""Tested by whole engines: int8 weights per channel with int8 activations per token, and fp8 likewise."""

ACCEPTED_UNTESTED_METHODS = ("auto_awq", "auto_gptq", "fp8", "modelopt", "online")
"""Accepted because PAD uses nothing of them but the layer's own forward either; no test runs them forked."""

_VLLM_NAMES = {"awq": "auto_awq", "gptq": "auto_gptq"}
"""quant_method of config.json -> vLLM's own name, where they differ."""


def stored_quantization(config: Any) -> dict[str, Any]:
    """`quantization_config` of a checkpoint's config.json; empty where the checkpoint is not quantised."""
    stored = getattr(config, "quantization_config", None) or {}
    return stored if isinstance(stored, dict) else dict(stored.to_dict())


def stored_quant_method(config: Any) -> str:
    """`quant_method` of config.json; empty where the checkpoint is not quantised."""
    return str(stored_quantization(config).get("quant_method", ""))


def require_forkable_method(name: str) -> None:
    """Raises ValueError for a method that `shared` does not fork.

    name: vLLM's or that of config.json; empty where the model is not quantised.
    """
    accepted = (*TESTED_METHODS, *ACCEPTED_UNTESTED_METHODS)
    if name and _VLLM_NAMES.get(name, name) not in accepted:
        raise ValueError(
            f"pad_vllm's shared engine does not fork a base quantised by {name!r} yet; accepted are "
            f"{listed(accepted)}. Serve another copy of the base, an adapter with heads only, which "
            "forks nothing, or use engine 'resident' or 'ray'."
        )


def require_plain_lm_head(quantization: Mapping[str, Any], base: str) -> None:
    """Raises ValueError where a checkpoint's `quantization_config` says that its lm_head is quantised."""
    if quantization.get("lm_head") is True:
        raise ValueError(
            f"{base} has a quantised lm_head, and rewards are read from its rows. Serve a "
            "version whose lm_head is not quantised."
        )
