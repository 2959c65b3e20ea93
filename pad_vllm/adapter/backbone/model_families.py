"""The model families whose served tokens are tested against the PyTorch model; every other is refused.

Names only, as config.json has them. Knows no model and no engine.
"""

from __future__ import annotations

from typing import NamedTuple


class ModelFamily(NamedTuple):
    """One architecture of text models."""

    architecture: str
    """The class that vLLM serves: `architectures` of config.json."""

    model_type: str
    """The decoder that Transformers runs: `model_type` of its text config."""


SUPPORTED_FAMILIES = (
    ModelFamily("Gemma3ForCausalLM", "gemma3_text"),
    ModelFamily("LlamaForCausalLM", "llama"),
    ModelFamily("MistralForCausalLM", "mistral"),
    ModelFamily("Qwen2ForCausalLM", "qwen2"),
    ModelFamily("Qwen3ForCausalLM", "qwen3"),
)

SUPPORTED_ARCHITECTURES = tuple(family.architecture for family in SUPPORTED_FAMILIES)
SUPPORTED_MODEL_TYPES = tuple(family.model_type for family in SUPPORTED_FAMILIES)
