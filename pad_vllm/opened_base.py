"""Opens a base in PyTorch, in one way for training, judging, explaining and fitting.

In: a name of `pad-vllm models`, a checkpoint's folder or a hub name. Out: a frozen Transformers model and its
tokenizer, on the accelerator where there is one, and over several where one has no room for it (Accelerate's
device map, whose hooks move states from layer to layer). vLLM opens its own.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from pad_vllm.adapter.backbone.safetensors_headers import stored_tensors
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.persrm import load_causal_lm
from pad_vllm.text.chat_template import load_chat_tokenizer

Attention = Literal["eager", "sdpa"]

DeviceMap = str | dict[str, Any]
"""Accelerate's: "auto", or a module's name -> its device."""

_SHARE_FOR_WEIGHTS = 0.6
"""Of an accelerator's memory, before a base is spread over several: activations and logits need the rest."""

_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
"""Files of a hub repository that are fetched."""

_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
"""Of CPUs that multiply in bfloat16, twice as fast as in float32; by PyTorch's names."""


class OpenedBase(NamedTuple):
    """A base in eval mode, its weights without gradients."""

    model: Any
    """A Transformers causal language model; token ids go to its `device`, also where it lies on several."""

    tokenizer: Any
    """Has a chat template."""

    folder: Path
    """Of the checkpoint."""


def base_folder(base: str) -> Path:
    """The folder of a base: a name of `pad-vllm models`, a folder, or a hub name, which is downloaded."""
    from huggingface_hub import snapshot_download

    resolved = resolve_base(base)
    if Path(resolved).is_dir():
        return Path(resolved)
    return Path(snapshot_download(resolved, allow_patterns=list(_PATTERNS)))


def default_device() -> torch.device:
    """The current accelerator; the CPU where there is none."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None else accelerator


def default_dtype(device: torch.device) -> str:
    """bfloat16, but float32 on CPUs without instructions for it, which are ten times slower in bfloat16."""
    if device.type != "cpu":
        return "bfloat16"
    has = torch.cpu.get_capabilities()
    return "bfloat16" if any(has.get(name) for name in _BFLOAT16_INSTRUCTIONS) else "float32"


def devices_for(folder: Path, dtype: str | None = None) -> DeviceMap | None:
    """How a base lies on this machine's accelerators: "auto" where one has no room for it, None where it has.

    Args:
        folder: of the checkpoint.
        dtype: as in `open_base`.
    """
    device = default_device()
    if device.type == "cpu" or torch.accelerator.device_count() < 2:
        return None
    free, _ = torch.accelerator.get_memory_info(device)
    return "auto" if weight_bytes(folder, dtype, device) > _SHARE_FOR_WEIGHTS * free else None


def weight_bytes(folder: Path, dtype: str | None, device: torch.device) -> int:
    """Of a checkpoint's tensors, in the type that they are opened in.

    Args:
        folder: of the checkpoint.
        dtype: as in `open_base`.
        device: that the default type is of.
    """
    tensors = stored_tensors(folder).values()
    if dtype == "auto":
        return sum(tensor.num_bytes for tensor in tensors)
    width = torch.finfo(getattr(torch, dtype or default_dtype(device))).bits // 8
    return width * sum(math.prod(tensor.shape) for tensor in tensors)


def open_base(
    base: str,
    *,
    dtype: str | None = None,
    device: torch.device | None = None,
    chat_template: str | None = None,
) -> OpenedBase:
    """A base and its tokenizer.

    Args:
        base: as in `base_folder`.
        dtype: "float32", "bfloat16", "float16"; "auto": the checkpoint's own; None: the device's default.
        device: None: the default one, or several of its kind (`devices_for`).
        chat_template: text of a Jinja template; None: the base's own.

    Raises:
        ValueError: there is no chat template, or it is of no use.
    """
    folder = base_folder(base)
    tokenizer = load_chat_tokenizer(folder, base, chat_template)
    model = open_model(folder, dtype=dtype, device=device)
    model.requires_grad_(False)
    return OpenedBase(model, tokenizer, folder)


def open_model(
    folder: Path,
    *,
    dtype: str | None = None,
    device: torch.device | None = None,
    attention: Attention = "sdpa",
    device_map: DeviceMap | None = None,
) -> Any:
    """The model of a checkpoint alone, in eval mode.

    Args:
        folder: of the checkpoint.
        dtype: as in `open_base`.
        device: as in `open_base`.
        attention: Transformers' implementation.
        device_map: of `devices_for`; None: all of it on the device that is given.

    Raises:
        ValueError: the devices together have no room for the base.
    """
    if device is None:
        device_map = device_map or devices_for(folder, dtype)
        device = default_device()
    dtype = dtype or default_dtype(device)
    if dtype == "float32" and device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    settings = {"dtype": dtype, "attn_implementation": attention}
    if device_map is None:
        return load_causal_lm(folder, **settings).to(device).eval()
    model = load_causal_lm(folder, **settings, device_map=device_map).eval()
    if device_map == "auto" and {"cpu", "disk"} & set(map(str, model.hf_device_map.values())):
        raise ValueError(
            f"{folder}: this machine's {torch.accelerator.device_count()} accelerators have no room for its "
            f"{weight_bytes(folder, dtype, device) / 2**30:.0f} GiB in {dtype}. Free their memory, use more "
            "of them, or take a smaller base"
        )
    return model
