"""What the base was fed: every row of its hidden states also carries its token id and its position.

Under async scheduling the last sampled token is on the device before any host list knows it, and captured
graphs run no Python; but the rows whose logits are computed always are rows of the hidden states. So
the forward appends six columns to them, digits that every float type holds exactly, and compute_logits
takes them off. In: a loaded vLLM model. It knows no requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from pad_vllm.engines.override_methods import mix_in

_DIGITS = 3  # base 256: up to 16.7 million
_SHIFTS = tuple(8 * digit for digit in range(_DIGITS))


class FedTokenReceiver(Protocol):
    """Who is told."""

    def receive(self, fed: Tensor) -> None: ...

    def discard(self) -> None:
        """`keep` failed."""


def attach_token_columns(
    model: Any,
    receiver: FedTokenReceiver,
    on_forward_start: Callable[[Tensor, Tensor], None] | None = None,
) -> None:
    """From here on `keeper.keep` is called with [R, 2] int64, token and position of each logits row,
    before their logits are computed; and `begin` with ids and positions [T] where a forward starts,
    but not where a captured graph replays it.
    """
    model.pad_fed_token_receiver = receiver
    model.pad_on_forward_start = on_forward_start
    mix_in(model, WithTokenColumns)


def encode_columns(ids: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """The digits of ids and positions: [T] each -> [T, 6]."""
    digits = [(numbers >> shift) & 255 for numbers in (ids, positions) for shift in _SHIFTS]
    return torch.stack(digits, dim=-1).to(dtype)


def decode_columns(carried: Tensor) -> Tensor:
    """The inverse: [R, 6] -> [R, 2] int64."""
    digits = carried.long().view(-1, 2, _DIGITS)
    return sum(digits[..., place] << shift for place, shift in enumerate(_SHIFTS))  # type: ignore[return-value]


class WithTokenColumns:
    """A model whose forward returns [T, H + 6], and whose compute_logits takes that."""

    pad_fed_token_receiver: FedTokenReceiver
    pad_on_forward_start: Callable[[Tensor, Tensor], None] | None

    def forward(self, input_ids: Tensor, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.pad_on_forward_start is not None:
            self.pad_on_forward_start(input_ids, positions)
        hidden = super().forward(input_ids, positions, *args, **kwargs)  # type: ignore[misc]
        return torch.cat((hidden, encode_columns(input_ids, positions, hidden.dtype)), dim=-1)

    def compute_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        hidden, fed = hidden_states[:, : -2 * _DIGITS], hidden_states[:, -2 * _DIGITS :]
        try:
            self.pad_fed_token_receiver.receive(decode_columns(fed))
        except Exception:  # noqa: BLE001, it would end the server; rewards() then has nothing to say
            self.pad_fed_token_receiver.discard()
        return super().compute_logits(hidden.contiguous(), *args, **kwargs)  # type: ignore[misc]
