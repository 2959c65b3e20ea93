"""Checks that a linear layer's rows are independent: a row's result may not depend on the rest of the batch.

The fork gives a layer twice the rows. Where activations are quantised by one scale for the whole batch, the
reward stream would change the base's own logits. Which scales a method uses may depend on the machine (vLLM's
fp8 uses one a row where CUTLASS has it, else one a batch), so the check runs the loaded layer itself.
In: a linear layer, loaded. Out: nothing, or a ForkError.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pad_vllm.engines.shared.lm_head_rows import ForkError

_ROWS = 4
_LARGER = 1e4
"""How much larger the other rows are: beyond what eight bits can hold of both, within float16."""

_SLACK = 0.02
"""Of the largest result: what another order of sums may change in bfloat16, and half of it again."""


@torch.no_grad()
def require_row_independence(
    linear: Any, name: str, dtype: torch.dtype, device: torch.device
) -> None:
    """Run the layer on random rows, alone and beside larger ones.

    Args:
        linear: a loaded layer of vLLM.
        name: what the message calls it.
        dtype: type of its input.
        device: where it computes.

    Raises:
        ForkError: results change with the rows beside them.
    """
    source = torch.Generator().manual_seed(0)
    # Under tensor parallelism a layer that splits its inputs takes its own part of them.
    width = getattr(linear, "input_size_per_partition", linear.input_size)
    x = torch.randn(_ROWS, width, generator=source, device="cpu").to(device, dtype)
    alone = _result(linear, x)
    beside_larger = _result(linear, torch.cat((x, x * _LARGER)))[:_ROWS]
    largest = float(alone.abs().max()) or 1.0  # dummy weights may give only zeros
    change = float((alone - beside_larger).abs().max()) / largest
    if not change <= _SLACK:
        raise ForkError(
            f"{name} quantises a whole batch by one scale ({type(linear.quant_method).__name__}): beside "
            f"larger rows its results change by {change:.0%}. The rows of the reward stream would change "
            "the base's own logits. Serve a copy whose activations are scaled per token, statically or not "
            "at all, or an adapter with heads only, which forks nothing"
        )


def _result(linear: Any, x: Tensor) -> Tensor:
    """x [R, in] -> [R, out] float32."""
    result = linear(x)
    output: Tensor = result[0] if isinstance(result, tuple) else result
    return output.float()
