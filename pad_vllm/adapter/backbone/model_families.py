"""The model families whose served tokens are tested against the PyTorch model; every other is refused.

Names only, as config.json has them. Knows no model and no engine.
"""

from __future__ import annotations

from typing import NamedTuple


class Family(NamedTuple):
    """One architecture of text models."""

    architecture: str
    """The class that vLLM serves: `architectures` of config.json."""

    model_type: str
    """The decoder that Transformers runs: `model_type` of its text config."""


FAMILIES = (
    Family("Gemma3ForCausalLM", "gemma3_text"),
    Family("LlamaForCausalLM", "llama"),
    Family("MistralForCausalLM", "mistral"),
    Family("Qwen2ForCausalLM", "qwen2"),
    Family("Qwen3ForCausalLM", "qwen3"),
)

ARCHITECTURES = tuple(family.architecture for family in FAMILIES)
MODEL_TYPES = tuple(family.model_type for family in FAMILIES)
