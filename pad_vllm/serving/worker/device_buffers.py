"""Buffers of a logits processor on the device.

They are allocated with the first request and not with the model, since level 2 of vLLM's sleep mode discards
what was allocated then. A step runs in inference mode, and the front end's calls do not.
"""

from __future__ import annotations

import torch
from torch import Tensor


def zeros(*size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that may be written in place in inference mode and outside of it."""
    with torch.inference_mode(mode=False):
        return torch.zeros(size, dtype=dtype, device=device)
