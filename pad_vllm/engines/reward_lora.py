"""Adds the reward stream's LoRA to linear layers: delta on the second half of the first dimension.

In: a linear layer of vLLM or torch, and PEFT-style (A, B) of the modules it packs. The layer keeps its
object, its parameters and their names; only its class changes to a subclass with another forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pad_vllm.engines.override_methods import mix_in

LoRAPair = tuple[Tensor, Tensor]


def pack_lora_pairs(pairs: list[LoRAPair | None], widths: list[int], scaling: float) -> LoRAPair:
    """One (A, B) for a packed layer: A [n r, in] stacked, B [out, n r] block-diagonal, scaled.

    pairs: (A [r, in], B [out_i, r]) a packed module, None where it has no LoRA; widths: out_i.
    Raises ValueError where a B has another width.
    """
    given = [pair for pair in pairs if pair is not None]
    A = torch.cat([a for a, _ in given])
    B = A.new_zeros(sum(widths), len(A))
    row = column = 0
    for pair, width in zip(pairs, widths, strict=True):
        if pair is not None:
            b = pair[1]
            if b.shape[0] != width:
                raise ValueError(f"LoRA B has {b.shape[0]} rows where the layer has {width}")
            B[row : row + width, column : column + b.shape[1]] = b * scaling
            column += b.shape[1]
        row += width
    return A, B


def add_reward_lora(
    linear: Any, A: Tensor, B: Tensor, dtype: torch.dtype, device: torch.device
) -> None:
    """From here on `linear` adds x A^T B^T to the second half of its rows; A [n r, in], B [out, n r]."""
    # Transposed once, so that a step multiplies without a copy; not persistent: no part of a checkpoint.
    linear.register_buffer("pad_A_t", A.T.contiguous().to(device, dtype), persistent=False)
    linear.register_buffer("pad_B_t", B.T.contiguous().to(device, dtype), persistent=False)
    mix_in(linear, RewardLoRA)


class RewardLoRA:
    """A linear layer that adds the LoRA to the second half of its rows."""

    pad_A_t: Tensor
    pad_B_t: Tensor

    requires_unquantized_input = True
    """vLLM: whatever comes before must not hand over its output quantised, since the LoRA reads it too."""

    def forward(self, input_: Tensor) -> Any:
        result = super().forward(input_)  # type: ignore[misc]
        output = result[0] if isinstance(result, tuple) else result
        half = input_.shape[0] // 2
        output[half:] += (input_[half:] @ self.pad_A_t) @ self.pad_B_t
        return result
