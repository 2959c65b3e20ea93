"""What the base was fed, beside its hidden states: every row carries its token id and its position.

Under async scheduling the last sampled token is on the device before any host list knows it, and captured
graphs run no Python; but the rows whose logits are computed always are rows of the hidden states. So
the forward appends six columns to them, digits that every float type holds exactly, and compute_logits
takes them off. In: a loaded vLLM model. It knows no requests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

_DIGITS = 3  # base 256: up to 16.7 million
_SHIFTS = tuple(8 * digit for digit in range(_DIGITS))


def carry(
    model: Any,
    keep: Callable[[Tensor], None],
    begin: Callable[[Tensor, Tensor], None] | None = None,
) -> None:
    """From here on `keep` is called with [R, 2] int64, token and position of each logits row, before
    their logits are computed; and `begin` with ids and positions [T] where a forward starts, but not
    where a captured graph replays it.
    """
    model.pad_keep, model.pad_begin = keep, begin
    model.__class__ = _carrying(model.__class__)


def columns(ids: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """ids, positions [T] -> [T, 6]."""
    digits = [(one >> shift) & 255 for one in (ids, positions) for shift in _SHIFTS]
    return torch.stack(digits, dim=-1).to(dtype)


def read(found: Tensor) -> Tensor:
    """The inverse: [R, 6] -> [R, 2] int64."""
    digits = found.long().view(-1, 2, _DIGITS)
    return sum(digits[..., place] << shift for place, shift in enumerate(_SHIFTS))  # type: ignore[return-value]


@cache
def _carrying(cls: Any) -> Any:
    def forward(self: Any, input_ids: Tensor, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.pad_begin is not None:
            self.pad_begin(input_ids, positions)
        hidden = cls.forward(self, input_ids, positions, *args, **kwargs)
        return torch.cat((hidden, columns(input_ids, positions, hidden.dtype)), dim=-1)

    def compute_logits(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        hidden, found = hidden_states[:, : -2 * _DIGITS], hidden_states[:, -2 * _DIGITS :]
        self.pad_keep(read(found))
        return cls.compute_logits(self, hidden.contiguous(), *args, **kwargs)

    members = {"forward": forward, "compute_logits": compute_logits, "__module__": __name__}
    return type(f"Carrying{cls.__name__}", (cls,), members)
