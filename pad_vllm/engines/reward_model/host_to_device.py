"""Copies many arrays to the device at once, without making the host wait.

In: numpy arrays of one type. Out: tensors of the same shapes. It does not know what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def send_to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """The arrays, all of one type, as views of one tensor on the device."""
    packed = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    if device.type != "cpu":
        # From memory that is not pinned, the host would wait for all work that was queued before.
        packed = packed.pin_memory().to(device, non_blocking=True)
    parts = packed.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
