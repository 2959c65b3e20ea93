"""The supported model families: their served tokens are tested against the PyTorch model. Others are refused.

This module holds names only, as config.json has them. It knows no model and no engine.
"""

from __future__ import annotations

from typing import NamedTuple


class ModelFamily(NamedTuple):
    """An architecture of text models, under its names in vLLM and Transformers."""

    architecture: str
    """Class that vLLM serves: an entry of `architectures` in config.json."""

    model_type: str
    """Decoder that Transformers runs: `model_type` of its text config."""


SUPPORTED_FAMILIES = (
    ModelFamily("Gemma3ForCausalLM", "gemma3_text"),
    ModelFamily("LlamaForCausalLM", "llama"),
    ModelFamily("MistralForCausalLM", "mistral"),
    ModelFamily("Qwen2ForCausalLM", "qwen2"),
    ModelFamily("Qwen3ForCausalLM", "qwen3"),
)

SUPPORTED_ARCHITECTURES = tuple(family.architecture for family in SUPPORTED_FAMILIES)
SUPPORTED_MODEL_TYPES = tuple(family.model_type for family in SUPPORTED_FAMILIES)
