"""Opens a base in PyTorch, in one way for training, judging, explaining and fitting.

In: a name of `pad-vllm models`, a checkpoint's folder or a hub name. Out: a frozen Transformers model and its
tokenizer, on the accelerator where there is one. vLLM opens its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.persrm import load_causal_lm
from pad_vllm.text.chat_template import load_chat_tokenizer

Attention = Literal["eager", "sdpa"]

_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
"""Files of a hub repository that are fetched."""

_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
"""Of CPUs that multiply in bfloat16, twice as fast as in float32; by PyTorch's names."""


class OpenedBase(NamedTuple):
    """A base in eval mode, its weights without gradients."""

    model: Any
    """A Transformers causal language model; its `device` is where token ids go."""

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
        device: None: the default one.
        chat_template: text of a Jinja template; None: the base's own.

    Raises:
        ValueError: there is no chat template, or it is of no use.
    """
    folder = base_folder(base)
    tokenizer = load_chat_tokenizer(folder, base, chat_template)
    model = open_model(folder, dtype=dtype, device=device).requires_grad_(False)
    return OpenedBase(model, tokenizer, folder)


def open_model(
    folder: Path,
    *,
    dtype: str | None = None,
    device: torch.device | None = None,
    attention: Attention = "sdpa",
) -> Any:
    """The model of a checkpoint alone, in eval mode.

    Args:
        folder: of the checkpoint.
        dtype: as in `open_base`.
        device: as in `open_base`.
        attention: Transformers' implementation.
    """
    device = device or default_device()
    dtype = dtype or default_dtype(device)
    if dtype == "float32" and device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    model = load_causal_lm(folder, dtype=dtype, attn_implementation=attention)
    return model.to(device).eval()
