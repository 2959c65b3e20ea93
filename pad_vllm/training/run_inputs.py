"""What a run is made from, by content: recorded in its folder, compared when it is resumed, kept on the card.

In: the base, the tokenizer and what the method reads (`made_from`). Out: OUT.run/inputs.json; lines that say
what changed. Every stage of an unfinished run depends on all of it, so a change starts the stages anew; the
cache of activations is named by content and stays. Knows no model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STAGE_FILES = (
    "answers.jsonl",
    "answers.declined.jsonl",
    "moments-*.safetensors",
    "prefix-*",
    "stage1",
    "stage2",
    "trunk",
    "bias",
)
"""What the stages and the methods keep in a run's folder."""

_NOT_COMPARED = "revisions"
"""Where the content came from: said on the card; the content alone decides."""


def tokenizer_digest(tokenizer: Any) -> str:
    """A digest of how a tokenizer splits text and renders conversations."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    splits = backend.to_str() if backend is not None else tokenizer.get_vocab()
    parts = [splits, tokenizer.chat_template, tokenizer.eos_token_id]
    text = json.dumps(parts, sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def hub_revision(folder: Path) -> str | None:
    """The commit of a snapshot in the hub's cache; None for any other folder."""
    resolved = folder.resolve()
    return resolved.name if resolved.parent.name == "snapshots" else None


def start_anew_where_changed(folder: Path, inputs: Mapping[str, Any]) -> list[str]:
    """Record what the run is made from; if an earlier start was made from something else, delete its stages.

    Args:
        folder: the run's, of which the settings are the same.
        inputs: plain JSON; the values of nested mappings are compared one by one.

    Returns:
        Lines for the log: what changed, or that it is unknown.
    """
    file = folder / "inputs.json"
    before = json.loads(file.read_text()) if file.exists() else None
    stages = [path for pattern in STAGE_FILES for path in folder.glob(pattern)]
    lines = []
    if before is None and stages:
        lines = [
            "WARNING: the earlier start of this run did not record its data and base; taken as unchanged"
        ]
    elif before is not None and (changes := _changes(before, inputs)):
        lines = [*changes, "the stages of this run start anew"]
        for path in stages:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    file.write_text(json.dumps(inputs, indent=1))
    return lines


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> list[str]:
    """`data jsonl=a.jsonl a.jsonl has changed`, for every value that differs."""
    lines = []
    for name in dict.fromkeys([*before, *now]):
        old, new, label = before.get(name), now.get(name), f"{within} {name}".strip()
        if old == new or label == _NOT_COMPARED:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _changes(old, new, label)
        else:
            lines.append(f"{label} has changed since this run was begun ({old}, now {new})")
    return lines
