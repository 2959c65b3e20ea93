"""Appends the base's input to its hidden states: token id and position of every row, as six columns.

Under async scheduling the last sampled token is on the device before any list on the host has it, and
captured CUDA graphs run no Python; but the rows whose logits are computed are always rows of the hidden
states. So the model's forward appends six columns, base-256 digits that every float type holds exactly, and
compute_logits takes them off again.
In: a loaded vLLM model. Out: calls of a FedTokenReceiver. It knows no requests.
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
    """Receives the (token id, position) of every logits row before compute_logits."""

    def receive(self, fed_tokens: Tensor) -> None:
        """Take [R, 2] int64 on the device: token id and position of the rows whose logits come next."""

    def discard(self) -> None:
        """`receive` raised an error: drop what it stored, so that this step's rows get no rewards."""


def attach_token_columns(
    model: Any,
    receiver: FedTokenReceiver,
    on_forward_start: Callable[[Tensor, Tensor], None] | None = None,
) -> None:
    """From here on `model` reports its input tokens and positions.

    Args:
        model: a loaded vLLM model; its class changes in place.
        receiver: called once a step, before logits are computed.
        on_forward_start: called with token ids and positions, [T] integers each on the device, when a forward
            starts, but not when a captured graph replays it.
    """
    model.pad_fed_token_receiver = receiver
    model.pad_on_forward_start = on_forward_start
    mix_in(model, WithTokenColumns)


def encode_columns(ids: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """Write token ids and positions as digits that a float type holds exactly.

    Args:
        ids: [T] integers, 0 to 16.7 million.
        positions: [T] integers, 0 to 16.7 million.
        dtype: the hidden states' type.

    Returns:
        [T, 6] of `dtype`: three digits of the id, lowest first, then three of the position.
    """
    digits = [(numbers >> shift) & 255 for numbers in (ids, positions) for shift in _SHIFTS]
    return torch.stack(digits, dim=-1).to(dtype)


def decode_columns(columns: Tensor) -> Tensor:
    """The inverse of `encode_columns`: [R, 6] of any float type -> [R, 2] int64, token id and position."""
    digits = columns.long().view(-1, 2, _DIGITS)
    return sum(digits[..., digit] << shift for digit, shift in enumerate(_SHIFTS))  # type: ignore[return-value]


class WithTokenColumns:
    """Mixin for a vLLM model: forward returns [T, H + 6], and compute_logits takes [R, H + 6]."""

    pad_fed_token_receiver: FedTokenReceiver
    pad_on_forward_start: Callable[[Tensor, Tensor], None] | None

    def forward(self, input_ids: Tensor, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """input_ids, positions [T]; further arguments as the model takes them -> [T, H + 6]."""
        if self.pad_on_forward_start is not None:
            self.pad_on_forward_start(input_ids, positions)
        hidden = super().forward(input_ids, positions, *args, **kwargs)  # type: ignore[misc]
        return torch.cat((hidden, encode_columns(input_ids, positions, hidden.dtype)), dim=-1)

    def compute_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """hidden_states [R, H + 6] -> the model's logits of [R, H]."""
        columns = 2 * _DIGITS
        hidden, fed_columns = hidden_states[:, :-columns], hidden_states[:, -columns:]
        try:
            self.pad_fed_token_receiver.receive(decode_columns(fed_columns))
        except Exception:  # noqa: BLE001, it would end the server; rewards() then returns None
            self.pad_fed_token_receiver.discard()
        return super().compute_logits(hidden.contiguous(), *args, **kwargs)  # type: ignore[misc]
