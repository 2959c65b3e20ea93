"""Loads and saves the adapter folder: a LoRA that PEFT can open, preference heads, learned prefixes and
pad_config.json.

A heads-only adapter has no LoRA: its folder must not hold PEFT's two files. In: a folder, or an `Adapter`.
Out: a checked `Adapter`, float32 on the CPU; or the folder, written completely or not at all. Reads and
writes safetensors only, never pickle. This module does not know how an adapter was trained or which engine
serves it. `manifest.py` reads pad_config.json alone.
"""

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pad_vllm.adapter import peft_lora
from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.adapter.learned_prefix import (
    LearnedPrefix,
    peft_prefix_settings,
    peft_prefix_tensors,
    prefix_from_peft,
)
from pad_vllm.adapter.manifest import (
    CONFIG_FILE,
    FORMAT_2,
    FORMAT_4,
    AdapterConfig,
    read_config,
    require_adapter_folder,
)
from pad_vllm.adapter.peft_lora import EMPTY_LORA, LORA_CONFIG_FILE, LORA_TENSORS_FILE, LoRA
from pad_vllm.guidance import HeadTensors
from pad_vllm.wording import first_listed, listed

HEADS_FILE = "preference_heads.safetensors"
CARD_FILE = "README.md"
ADAPTER_FILES = (LORA_CONFIG_FILE, LORA_TENSORS_FILE, CONFIG_FILE, HEADS_FILE, CARD_FILE)
PREFIXES_FOLDER = "prefixes"
"""Has a folder of PEFT's two files for each learned prefix, which has its name."""
TRAINING_RECORD_FILES = ("curves.png", "history.json")
"""Files that training writes into the adapter folder; `load_adapter` ignores them."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def load_adapter(path: str | Path) -> Adapter:
    """The adapter in folder `path`, float32 on the CPU.

    Raises AdapterError, which names the path, what is wrong with it and what to do.
    """
    folder = require_adapter_folder(path)
    config = read_config(folder)
    try:
        lora = _load_lora(folder, config)
        heads = _load_heads(folder / HEADS_FILE, config)
        prefixes = _load_prefixes(folder / PREFIXES_FOLDER, config)
        return Adapter(config, lora, *heads, path=folder, prefixes=prefixes)
    except AdapterError as error:
        raise AdapterError(f"adapter {folder}: {error}") from None


def save_adapter(adapter: Adapter, path: str | Path, card: str) -> None:
    """Writes the adapter folder, its tensors in their own dtypes.

    The files are written to a temporary folder beside `path`, which is then renamed to `path`. An adapter
    that exists there is replaced by two renames: of it to another name, and of the new folder to `path`.

    Args:
        adapter: Adapter to save.
        path: Folder to write.
        card: Text of the folder's README.md, the model card.

    Raises:
        AdapterError: The folder exists and holds files that are not an adapter's.
    """
    target = Path(path).expanduser()
    require_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    new_folder = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    new_folder.mkdir()
    try:
        _write_files(adapter, new_folder, card)
        _replace_folder(new_folder, target)
    finally:
        shutil.rmtree(new_folder, ignore_errors=True)


def _load_lora(folder: Path, config: AdapterConfig) -> LoRA:
    if config.heads_only:
        peft_lora.require_no_peft_files(folder)
        return EMPTY_LORA
    settings, tensors_file = peft_lora.read_peft_config(folder)
    return peft_lora.lora_from_peft(
        settings,
        _read_tensors(tensors_file),
        fork=config.fork_layer,
        num_layers=config.backbone.num_layers,
    )


def _load_heads(file: Path, config: AdapterConfig) -> HeadTensors:
    heads = _read_tensors(file)
    constants_accepted = config.format_version >= FORMAT_2
    required = {"A", "B", "G"} if config.gated else {"A", "B"}
    if set(heads) - ({"C"} if constants_accepted else set()) != required:
        names = ", ".join(sorted(required))
        accepted = f"{names} and, for constants, C" if constants_accepted else "exactly A and B"
        if "G" in heads and not config.gated:
            accepted += f'; G from format_version {FORMAT_4} on, with "gated": true'
        raise AdapterError(
            f"{file.name} holds the tensors {first_listed(sorted(heads))}; accepted: {accepted}. "
            "Save the adapter again."
        )
    return HeadTensors(**heads)


def _load_prefixes(folder: Path, config: AdapterConfig) -> dict[str, LearnedPrefix]:
    listed_prefixes = config.prefixes
    if listed_prefixes is None:
        return {}
    prefixes = {}
    for name in listed_prefixes.digests:
        settings, tensors_file = peft_lora.read_peft_config(folder / name)
        prefixes[name] = prefix_from_peft(
            settings,
            _read_tensors(tensors_file),
            num_layers=config.backbone.num_layers - listed_prefixes.fork_layer,
            num_tokens=listed_prefixes.num_tokens,
        )
    return prefixes


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """The file's tensors as float32 copies, which stay valid when the file is replaced."""
    if not file.is_file():
        raise AdapterError(
            f"{file.name} is missing. Copy the whole folder, or save the adapter again."
        )
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(
            f"{file.name} is cut short or no safetensors file ({error}). Copy it again."
        ) from None
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise AdapterError(
                f"{file.name}: tensor {name} is {tensor.dtype}; accepted: "
                f"{listed(str(dtype) for dtype in _DTYPES)}. Convert it and save the adapter again."
            )
    return {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}


def _write_files(adapter: Adapter, folder: Path, card: str) -> None:
    if not adapter.config.heads_only:
        _write_lora(adapter, folder)
    heads = adapter.heads._asdict().items()
    _save_tensors({name: head for name, head in heads if head is not None}, folder / HEADS_FILE)
    for name, prefix in adapter.prefixes.items():
        own_folder = folder / PREFIXES_FOLDER / name
        own_folder.mkdir(parents=True)
        settings = peft_prefix_settings(prefix, backbone=adapter.config.backbone.name)
        _write_peft(settings, peft_prefix_tensors(prefix), own_folder)
    (folder / CONFIG_FILE).write_text(adapter.config.to_json(), "utf-8")
    (folder / CARD_FILE).write_text(card, "utf-8")


def _write_lora(adapter: Adapter, folder: Path) -> None:
    backbone = adapter.config.backbone
    settings = peft_lora.peft_settings(
        adapter.lora,
        backbone=backbone.name,
        fork=adapter.config.fork_layer,
        num_layers=backbone.num_layers,
    )
    _write_peft(settings, peft_lora.peft_tensors(adapter.lora), folder)


def _write_peft(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write PEFT's two files."""
    text = json.dumps(settings, sort_keys=True, indent=2) + "\n"
    (folder / LORA_CONFIG_FILE).write_text(text, "utf-8")
    _save_tensors(tensors, folder / LORA_TENSORS_FILE)


def _save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    # Clones, because safetensors refuses tensors that share memory, such as views and expanded tensors.
    clones = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    save_file(clones, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors makes files that only their owner can read


def require_replaceable(target: Path) -> None:
    """Raises AdapterError for a path that `save_adapter` would refuse to write to."""
    if not target.exists():
        return
    names = sorted(p.name for p in target.iterdir()) if target.is_dir() else [target.name]
    own = (*ADAPTER_FILES, PREFIXES_FOLDER, *TRAINING_RECORD_FILES)
    foreign = [name for name in names if name not in own]
    if foreign or not target.is_dir():
        raise AdapterError(
            f"{target} holds files that are not an adapter's ({listed(foreign[:4])}), and saving "
            "would replace the folder. Save into a new folder, or into one that holds an adapter."
        )


def _replace_folder(new_folder: Path, target: Path) -> None:
    """Renames `new_folder` to `target`. If that fails, the old adapter stays in place."""
    if not target.exists():
        new_folder.replace(target)
        return
    old_folder = new_folder.with_name(new_folder.name + ".old")
    target.replace(old_folder)
    try:
        new_folder.replace(target)
    except OSError:
        old_folder.replace(target)
        raise
    shutil.rmtree(old_folder)
