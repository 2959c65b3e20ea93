"""The record beside a checkpoint that a LoRA was merged into: which base, and which LoRA.

In: a checkpoint's folder. Out: a MergedLoRA. `pad-vllm merge-lora` writes the record; an adapter that
is trained on the checkpoint keeps its content.
"""

import dataclasses
import json
import re
from pathlib import Path

from pad_vllm.adapter.json_fields import read_json_object, require_field, require_keys
from pad_vllm.merged_lora import MergedLoRA

MERGED_FILE = "pad_merged_lora.json"
FINGERPRINT = re.compile("sha256:[0-9a-f]{64}")

_FIELDS = [field.name for field in dataclasses.fields(MergedLoRA)]


def merged_lora_from_json(raw: object, where: str) -> MergedLoRA:
    """A MergedLoRA of its fields. where: what holds them, for messages. Raises AdapterError."""
    require_field(isinstance(raw, dict), where, raw, "an object, or none at all")
    assert isinstance(raw, dict)
    require_keys(f"{where}.", raw, _FIELDS)
    for name, value in raw.items():
        is_fingerprint = name.endswith("_fingerprint")
        valid = isinstance(value, str) and (not is_fingerprint or FINGERPRINT.fullmatch(value))
        accepted = "'sha256:' and 64 hex digits" if is_fingerprint else "text"
        require_field(valid, f"{where}.{name}", value, accepted)
    return MergedLoRA(**raw)


def read_merged_lora(checkpoint: Path, fingerprint: str) -> MergedLoRA | None:
    """What was merged into the weights with this fingerprint; None without a record, or where it is one of
    other weights: they were changed since. Raises AdapterError for a malformed record.
    """
    file = checkpoint / MERGED_FILE
    if not file.is_file():
        return None
    raw = read_json_object(file, "Merge the LoRA again: pad-vllm merge-lora.")
    is_current = raw.pop("fingerprint", None) == fingerprint
    merged = merged_lora_from_json(raw, MERGED_FILE)
    return merged if is_current else None


def write_merged_lora(checkpoint: Path, fingerprint: str, merged: MergedLoRA) -> None:
    """Record what was merged into the weights with this fingerprint."""
    content = {"fingerprint": fingerprint, **dataclasses.asdict(merged)}
    (checkpoint / MERGED_FILE).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
