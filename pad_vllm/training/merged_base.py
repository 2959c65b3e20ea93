"""A checkpoint of the base with a LoRA merged into it, on which an adapter for requests under it is trained.

In: folders of a base and of a LoRA as PEFT writes it. Out: a folder like the base's, with a record of both
(adapter/backbone/merged_checkpoint.py).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.backbone.merged_checkpoint import write_merged_lora
from pad_vllm.adapter.backbone.weight_fingerprint import fingerprint
from pad_vllm.adapter.lora_fingerprint import lora_fingerprint
from pad_vllm.merged_lora import MergedLoRA
from pad_vllm.persrm import load_causal_lm

_TEXT_FILES = ("*.json", "*.model", "*.jinja", "*.txt")


def merge_lora(base: Path, lora: Path, out: Path, *, base_name: str | None = None) -> MergedLoRA:
    """Write a checkpoint of the base with the LoRA merged into it, in the base's own dtype.

    Args:
        base: folder of the base.
        lora: folder of the LoRA.
        out: folder to write; new, or empty.
        base_name: the base's name in messages and the model card; None: that of its folder.

    Returns:
        What was merged.

    Raises:
        ValueError: the folder to write has files, or the LoRA is not a plain one of layers alone.
    """
    from peft import PeftModel

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists; accepted: a new or an empty folder. Name another")
    backbone = Backbone.from_checkpoint(base, base_name)
    assert backbone.fingerprint is not None
    merged = MergedLoRA(
        base=backbone.name,
        base_fingerprint=backbone.fingerprint,
        lora=lora.resolve().name,
        lora_fingerprint=lora_fingerprint(lora),
    )
    model = PeftModel.from_pretrained(load_causal_lm(base, dtype="auto"), lora)
    model.merge_and_unload().save_pretrained(out)
    for pattern in _TEXT_FILES:  # the tokenizer's, and those of generation
        for file in base.glob(pattern):
            if not (out / file.name).exists() and not file.name.endswith(".index.json"):
                shutil.copy(file, out)
    write_merged_lora(out, fingerprint(out), merged)
    return merged
