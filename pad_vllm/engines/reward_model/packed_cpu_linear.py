"""Linear layers on a CPU with their weights packed once for oneDNN, instead of anew in every call.

In: a torch linear layer. Its class changes to one that multiplies by the packed weight, and the plain weight
is dropped. About twice as fast for the few rows of a decoding step; torch's own compiler does the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pad_vllm.engines.override_methods import mix_in

_ONEDNN = torch.ops.mkldnn
_OPERATORS = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
_TYPICAL_ROWS = 16  # a step's rows, about; oneDNN lays the weight out for so many


def rounded_row_count(num_rows: int) -> int:
    """`num_rows`, or up to an eighth more: oneDNN makes and keeps a kernel for each number of rows, and
    hundreds of them would take hundreds of MiB.
    """
    step = 1 << max((num_rows - 1).bit_length() - 3, 0)
    return -(-num_rows // step) * step


def pack_linears(model: nn.Module) -> None:
    """Pack every nn.Linear of `model` on a CPU, in a type that oneDNN multiplies on this processor. Does
    nothing where torch lacks one of the operators.
    """
    has_operators = all(hasattr(_ONEDNN, operator) for operator in _OPERATORS)
    if not (torch.backends.mkldnn.is_available() and has_operators):
        return
    types = [torch.float32]
    if _ONEDNN._is_mkldnn_bf16_supported():  # noqa: SLF001, as torch's compiler does
        types.append(torch.bfloat16)
    for linear in [module for module in model.modules() if type(module) is nn.Linear]:
        if linear.weight.device.type == "cpu" and linear.weight.dtype in types:
            _pack(linear)


def _pack(linear: Any) -> None:
    linear.pad_packed = _ONEDNN._reorder_linear_weight(  # noqa: SLF001, as above
        linear.weight.detach(), _TYPICAL_ROWS
    )
    linear.weight = nn.Parameter(linear.weight.new_empty(0), requires_grad=False)
    mix_in(linear, PackedLinear)


class PackedLinear:
    """Mixin for nn.Linear: multiplies by the packed weight."""

    pad_packed: Tensor
    """The weight [out, in] in oneDNN's own layout."""

    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, torch's own name
        """[..., in] -> [..., out]."""
        product: Tensor = _ONEDNN._linear_pointwise(  # noqa: SLF001, as above
            input, self.pad_packed, self.bias, "none", [], ""
        )
        return product
