"""Adds the reward stream's LoRA to a linear layer: the delta goes to the second half of its rows.

In: a linear layer of vLLM or torch, and PEFT-style (A, B) of the modules that the layer packs. The layer's
object, parameters and their names stay; only its class changes, to a subclass with another forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pad_vllm.engines.override_methods import mix_in

LoRAPair = tuple[Tensor, Tensor]
"""One module's LoRA: A [r, in], B [out, r]."""


def pack_lora_pairs(pairs: list[LoRAPair | None], widths: list[int], scaling: float) -> LoRAPair:
    """Combine the LoRA of the modules that one packed layer holds (q, k, v; gate, up).

    Args:
        pairs: one entry a packed module, A [r, in] and B [out_i, r]; None for a module without LoRA.
        widths: out_i of each module, in the same order.
        scaling: factor on every B, PEFT's alpha / r.

    Returns:
        A [n r, in], stacked, and B [sum of out_i, n r], block-diagonal and scaled; n modules have LoRA.

    Raises:
        ValueError: a B has another width than its module.
    """
    A = torch.cat([pair[0] for pair in pairs if pair is not None])
    B = A.new_zeros(sum(widths), len(A))
    row = column = 0
    for pair, width in zip(pairs, widths, strict=True):
        if pair is not None:
            module_B = pair[1]
            if module_B.shape[0] != width:
                raise ValueError(f"LoRA B has {module_B.shape[0]} rows where the layer has {width}")
            rank = module_B.shape[1]
            B[row : row + width, column : column + rank] = module_B * scaling
            column += rank
        row += width
    return A, B


def add_reward_lora(
    linear: Any, A: Tensor, B: Tensor, dtype: torch.dtype, device: torch.device
) -> None:
    """From here on `linear` adds x A^T B^T to the second half of its rows.

    Args:
        linear: a linear layer; it gets two buffers that are not part of a checkpoint.
        A: [n r, in], on any device.
        B: [out, n r], scaled.
        dtype: type of the products, that of the layer's input.
        device: where the layer computes.
    """
    # Transposed once, so that a step multiplies without a copy; not persistent: no part of a checkpoint.
    linear.register_buffer("pad_A_t", A.T.contiguous().to(device, dtype), persistent=False)
    linear.register_buffer("pad_B_t", B.T.contiguous().to(device, dtype), persistent=False)
    mix_in(linear, RewardLoRA)


class RewardLoRA:
    """Mixin for a linear layer over [base rows; reward rows]: adds the LoRA to the reward rows."""

    pad_A_t: Tensor
    """[in, n r], in the layer's compute type."""

    pad_B_t: Tensor
    """[n r, out], scaled."""

    requires_unquantized_input = True
    """Read by vLLM: the layer before must not hand over its output quantised, since the LoRA reads it too."""

    def forward(self, input_: Tensor) -> Any:
        """input_ [2T, in] -> what the layer returns, its output [2T, out] changed in place from row T on."""
        result = super().forward(input_)  # type: ignore[misc]
        output = result[0] if isinstance(result, tuple) else result
        half = input_.shape[0] // 2
        output[half:] += (input_[half:] @ self.pad_A_t) @ self.pad_B_t
        return result
