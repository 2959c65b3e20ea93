"""A LoRA that was merged into a base: how an adapter says which one the model that it was trained on has.

Such an adapter guides requests under that LoRA of the base, which vLLM computes apart. In: names and
fingerprints. Knows no file and no tensor.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class MergedLoRA:
    """A base and its LoRA. Names appear in messages and are never compared."""

    base: str
    base_fingerprint: str
    """`weight_fingerprint.fingerprint()` of the base without the LoRA."""

    lora: str
    lora_fingerprint: str
    """`lora_fingerprint.lora_fingerprint()` of the LoRA's folder."""
