"""Quantised bases: which methods a fork may run, by name.

A fork needs of a layer only that its rows are their own, and looks at that when the model is loaded
(engines/shared/row_independence_check.py);
it adds the LoRA to what the layer's own forward gives, so that nobody here unpacks
a weight. What is not named here was not thought about. Heads only need nothing of it but a plain lm_head.
"""

from __future__ import annotations

from typing import Any

from pad_vllm.wording import listed

TESTED_METHODS = ("compressed-tensors",)
"""By a whole engine: int8 weights a channel with int8 activations a token, and fp8 likewise."""

UNTESTED_METHODS = ("auto_awq", "auto_gptq", "fp8", "modelopt", "online")
"""Taken as alike: the layer's own forward is all that is used of them too. No test here runs them forked."""

_STORED_AS = {"awq": "auto_awq", "gptq": "auto_gptq"}
"""quant_method of config.json -> vLLM's own name, where they differ."""


def stored_quantization(config: Any) -> dict[str, Any]:
    """How a checkpoint was packed, as config.json has it; empty where it was not."""
    found = getattr(config, "quantization_config", None) or {}
    return found if isinstance(found, dict) else dict(found.to_dict())


def stored_quant_method(config: Any) -> str:
    """The method: quant_method of config.json; empty where the checkpoint was not packed."""
    return str(stored_quantization(config).get("quant_method", ""))


def require_forkable_method(name: str) -> None:
    """Raises ValueError for a method that `shared` does not fork.

    name: vLLM's or that of config.json; empty where the model is not quantised.
    """
    if name and _STORED_AS.get(name, name) not in (*TESTED_METHODS, *UNTESTED_METHODS):
        raise ValueError(
            f"pad_vllm's shared engine does not fork a base quantised by {name!r} yet; accepted are "
            f"{listed((*TESTED_METHODS, *UNTESTED_METHODS))}. Serve another copy of the base, an adapter with heads only, which "
            "forks nothing, or use engine 'resident' or 'ray'."
        )
