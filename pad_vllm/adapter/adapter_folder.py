"""The adapter on disk: a folder that PEFT opens as a LoRA, plus heads and pad_config.json.

Where the fork is at the top there is no LoRA: PEFT's two files are absent, and refused where they are not.
In: a folder, or tensors and their config. Out: an `Adapter`, float32 on the CPU, everything
checked; or the folder, written whole or not at all. safetensors only, never pickle. It does not
know how an adapter was trained or who serves it. `manifest.py` reads pad_config.json alone.
"""

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pad_vllm.adapter import peft_lora
from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.adapter.manifest import (
    CONFIG_FILE,
    FORMAT_2,
    AdapterConfig,
    read_config,
    require_adapter_folder,
)
from pad_vllm.adapter.peft_lora import EMPTY_LORA, LORA_CONFIG_FILE, LORA_TENSORS_FILE, LoRA
from pad_vllm.wording import listed

HEADS_FILE = "preference_heads.safetensors"
CARD_FILE = "README.md"
ADAPTER_FILES = (LORA_CONFIG_FILE, LORA_TENSORS_FILE, CONFIG_FILE, HEADS_FILE, CARD_FILE)
TRAINING_RECORD_FILES = ("curves.png", "history.json")
"""What training leaves beside an adapter's files; nothing that loads one reads them."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def load_adapter(path: str | Path) -> Adapter:
    """The adapter in folder `path`. Raises AdapterError: the path, what is wrong, the way out."""
    folder = require_adapter_folder(path)
    config = read_config(folder)
    try:
        lora = _lora(folder, config)
        heads = _heads(folder / HEADS_FILE, config.format_version)
        return Adapter(config, lora, heads["A"], heads["B"], heads.get("C"), folder)
    except AdapterError as error:
        raise AdapterError(f"adapter {folder}: {error}") from None


def save_adapter(adapter: Adapter, path: str | Path, card: str) -> None:
    """Writes the adapter's folder, with `card` as its README.md, in the tensors' own dtypes.

    The files are written beside `path` and moved there together. An adapter that is already there
    is replaced; AdapterError for a folder with anything else in it.
    """
    target = Path(path).expanduser()
    require_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    fresh.mkdir()
    try:
        _write(adapter, fresh, card)
        _move(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _lora(folder: Path, config: AdapterConfig) -> LoRA:
    if config.heads_only:
        peft_lora.require_no_peft_files(folder)
        return EMPTY_LORA
    settings, tensors = peft_lora.read_peft_config(folder)
    return peft_lora.lora_from_peft(
        settings, _read(tensors), config.fork_layer, config.backbone.num_layers
    )


def _heads(file: Path, version: int) -> dict[str, Tensor]:
    heads = _read(file)
    constants = version >= FORMAT_2
    if set(heads) - ({"C"} if constants else set()) != {"A", "B"}:
        accepted = "A, B and, for constants, C" if constants else "exactly A and B"
        raise AdapterError(
            f"{file.name} holds the tensors {listed(sorted(heads))}; accepted: {accepted}. "
            "Save the adapter again."
        )
    return heads


def _read(file: Path) -> dict[str, Tensor]:
    """Tensors of one file, as float32 copies: the file may be replaced while they live."""
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


def _write(adapter: Adapter, folder: Path, card: str) -> None:
    if not adapter.config.heads_only:
        _write_lora(adapter, folder)
    heads = zip("ABC", adapter.heads, strict=True)
    _save({name: head for name, head in heads if head is not None}, folder / HEADS_FILE)
    (folder / CONFIG_FILE).write_text(adapter.config.to_json(), "utf-8")
    (folder / CARD_FILE).write_text(card, "utf-8")


def _write_lora(adapter: Adapter, folder: Path) -> None:
    backbone = adapter.config.backbone
    settings = peft_lora.peft_settings(
        adapter.lora, backbone.name, adapter.config.fork_layer, backbone.num_layers
    )
    (folder / LORA_CONFIG_FILE).write_text(
        json.dumps(settings, sort_keys=True, indent=2) + "\n", "utf-8"
    )
    _save(peft_lora.peft_tensors(adapter.lora), folder / LORA_TENSORS_FILE)


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    # Clones: safetensors refuses tensors that share memory, as views and expanded ones do.
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    save_file(plain, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors writes for the owner alone


def require_replaceable(target: Path) -> None:
    """Raises AdapterError for a folder that `save_adapter` would not write to."""
    if not target.exists():
        return
    names = sorted(p.name for p in target.iterdir()) if target.is_dir() else [target.name]
    foreign = [name for name in names if name not in ADAPTER_FILES + TRAINING_RECORD_FILES]
    if foreign or not target.is_dir():
        raise AdapterError(
            f"{target} holds files that are not an adapter's ({listed(foreign[:4])}), and saving "
            "would replace the folder. Save into a new folder or an adapter's own."
        )


def _move(fresh: Path, target: Path) -> None:
    """Puts `fresh` in the place of `target`; a failure leaves the old adapter where it was."""
    if not target.exists():
        fresh.replace(target)
        return
    old = fresh.with_name(fresh.name + ".old")
    target.replace(old)
    try:
        fresh.replace(target)
    except OSError:
        old.replace(target)
        raise
    shutil.rmtree(old)
