"""Quantised copies of a checkpoint, rounded to nearest, as vLLM reads them; lm_head is left alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
LARGEST = {torch.int8: 127.0, FP8: 448.0}
SEVEN_BITS = 63.0
"""Of int8 weights: where a CPU has no VNNI, oneDNN adds pairs of products in 16 bits, and these saturate."""

Packed = dict[str, Tensor]


def int8(checkpoint: Path, folder: Path) -> Path:
    """compressed-tensors W8A8: a scale an output channel, and one a token when it runs."""
    config = _compressed("int", "int-quantized")
    return _written(checkpoint, folder, lambda w: _packed(w, torch.int8, -1, SEVEN_BITS), config)


def fp8(checkpoint: Path, folder: Path) -> Path:
    """The same in eight bits of floating point."""
    config = _compressed("float", "float-quantized")
    return _written(checkpoint, folder, lambda w: _packed(w, FP8, -1), config)


def _compressed(kind: str, name: str) -> dict[str, Any]:
    number = {"num_bits": 8, "type": kind, "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**number, "strategy": "channel", "dynamic": False},
                "input_activations": {**number, "strategy": "token", "dynamic": True},
            }
        },
    }


def _packed(
    weight: Tensor, dtype: torch.dtype, dim: int | None, largest: float | None = None
) -> Packed:
    values, scale = rounded(weight.float(), dtype, dim, largest)
    return {"weight": values.to(dtype), "weight_scale": scale}


def rounded(
    x: Tensor, dtype: torch.dtype, dim: int | None, largest: float | None = None
) -> tuple[Tensor, Tensor]:
    """float32 -> what `dtype` holds of it, in float32, and the scale: of all of it, or along `dim`."""
    top = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    scale = top.clamp(min=1e-12) / (largest or LARGEST[dtype])
    values = x / scale
    return (values.round() if dtype == torch.int8 else values.to(dtype).float()), scale


def _written(
    checkpoint: Path,
    folder: Path,
    pack: Callable[[Tensor], Packed],
    config: dict[str, Any],
) -> Path:
    shutil.copytree(checkpoint, folder)
    file = folder / "model.safetensors"
    kept: Packed = {}
    for name, tensor in load_file(file).items():
        if name.endswith("_proj.weight"):
            parts = pack(tensor)
            kept.update({f"{name.removesuffix('weight')}{part}": t for part, t in parts.items()})
        else:
            kept[name] = tensor
    save_file({name: tensor.contiguous() for name, tensor in kept.items()}, file)
    said = json.loads((folder / "config.json").read_text("utf-8"))
    text = json.dumps({**said, "quantization_config": config})
    (folder / "config.json").write_text(text, "utf-8")
    return folder


class Rounding(nn.Linear):
    """A linear layer that computes as a copy of `int8` does, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        w, by_channel = rounded(self.weight.float(), torch.int8, -1, SEVEN_BITS)
        values, by_token = rounded(x.float(), torch.int8, -1)
        result = nn.functional.linear(values, w) * by_token * by_channel.T
        return (result if self.bias is None else result + self.bias.float()).to(x.dtype)


def round_layers(model: nn.Module) -> None:
    """Has the linear layers of a PyTorch model compute as a copy of `int8` does; a LoRA stays as it is."""
    for name, layer in model.named_modules():
        if type(layer) is nn.Linear and name.removesuffix(".base_layer").endswith("_proj"):
            layer.__class__ = Rounding
