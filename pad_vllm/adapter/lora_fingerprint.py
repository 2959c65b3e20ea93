"""Fingerprints a LoRA of the base: two with one fingerprint change the base's hidden states alike.

In: a folder as PEFT writes it. Out: `sha256:...`. It imports neither torch nor PEFT, and reads samples of the
tensors.
"""

import hashlib
import json
from pathlib import Path

from pad_vllm.adapter.backbone.safetensors_headers import tensors_of_file
from pad_vllm.adapter.backbone.weight_fingerprint import fingerprint_of_tensors
from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.adapter.peft_lora import LORA_TENSORS_FILE, read_peft_config, require_plain_lora
from pad_vllm.wording import listed

_VOCABULARY_MODULES = ("embed_tokens", "lm_head")


def lora_fingerprint(folder: Path) -> str:
    """`sha256:<64 hex digits>` of the LoRA in a folder: its tensors, and what they are multiplied by.

    Raises AdapterError where PEFT's two files are missing or malformed, where vLLM would compute something
    else than PEFT, or where the LoRA changes embeddings or lm_head too.
    """
    settings, file = read_peft_config(folder)
    require_plain_lora(settings)
    stored = tensors_of_file(file)
    others = sorted(name for name in stored if any(part in name for part in _VOCABULARY_MODULES))
    if others:
        raise AdapterError(
            f"{LORA_TENSORS_FILE} has {listed(others[:4])}; accepted: a LoRA of layers alone, because "
            "rewards are computed with the base's own lm_head. Train the LoRA without these modules."
        )
    scaling = [settings.get("r"), float(settings.get("lora_alpha") or 0)]
    essentials = [*scaling, bool(settings.get("use_rslora")), fingerprint_of_tensors(stored)]
    return f"sha256:{hashlib.sha256(json.dumps(essentials).encode()).hexdigest()}"
