"""Synthetic users: preference weights to train and to test on (the paper's synthetic preferences).

Out: w [N, D]. Knows nothing of data or models.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw(count: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """Half single dimensions, a quarter Dirichlet mixes, a quarter signed mixes: w [count, D].

    One in three of the single ones is negative. Rows have a largest |w| of 1.
    """
    kind = torch.rand(count, generator=generator)
    single = torch.nn.functional.one_hot(
        torch.randint(dimensions, (count,), generator=generator), dimensions
    ).float()
    sign = 1 - 2 * (torch.rand(count, 1, generator=generator) < 1 / 3).float()
    mix = -torch.rand(count, dimensions, generator=generator).log()
    flips = 1 - 2 * (torch.rand(count, dimensions, generator=generator) < 0.5).float()
    w = torch.where((kind < 0.5)[:, None], single * sign, mix)
    w = torch.where((kind >= 0.75)[:, None], mix * flips, w)
    return w / w.abs().amax(-1, keepdim=True)
