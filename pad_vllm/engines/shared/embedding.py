"""The output embedding of a served model: e, the rows of lm_head that rewards are read from.

In: a loaded vLLM model of any architecture. Out: the plain matrix [V, H]; or a ForkError where there is none,
or where the logits are something other than its rows times the hidden state. Knows no adapter's tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pad_vllm.adapter.manifest import Backbone

_PLAIN = (torch.float32, torch.bfloat16, torch.float16)
_ROWS = 4
_LARGEST = 100.0
"""The largest logit that is compared: beyond the caps that models put on theirs."""

_SLACK = 0.01 * _LARGEST
"""Twice what rounding a logit of this size to bfloat16 changes."""


class ForkError(ValueError):
    """The served model has a part that cannot be read or forked; the message says which, and what can."""


def output_embedding(model: Any, config: Backbone) -> Tensor:
    """e: the plain [V, H] matrix of lm_head. Raises ForkError where it is packed, sharded, missing or not the
    whole of what makes logits.
    """
    head = getattr(model, "lm_head", None)
    weight = getattr(head, "weight", None)
    if weight is None or weight.dtype not in _PLAIN or weight.ndim != 2:
        how = type(getattr(head, "quant_method", head)).__name__
        raise ForkError(
            f"the served model's lm_head is missing, quantised or not a plain matrix ({how}), and rewards "
            "are read from its rows; accepted are float32, bfloat16 and float16. Serve a copy that leaves "
            "lm_head as it is (most methods do), or guide this one with a reward model of its own: engine "
            "'resident' or 'ray'"
        )
    if weight.shape[0] < config.vocab_size or weight.shape[1] != config.hidden_size:
        raise ForkError(
            f"lm_head is {list(weight.shape)}; the adapter needs [{config.vocab_size}, "
            f"{config.hidden_size}]; serve the adapter's own backbone without tensor parallelism"
        )
    _require_plain_logits(model, weight, config.vocab_size)
    return weight


def _require_plain_logits(model: Any, weight: Tensor, vocabulary: int) -> None:
    difference = _largest_difference(model, weight, vocabulary)
    if not difference <= _SLACK:
        raise ForkError(
            f"the logits of the served {type(model).__name__} are not lm_head times the hidden state: of "
            f"random states whose largest logit is {_LARGEST:g} they differ by {difference:.3g} (a soft cap, "
            "a scale or a norm), so rewards would be in another unit than logits. Serve a model without "
            "one, or guide this one with a reward model of its own: engine 'resident' or 'ray'"
        )


@torch.no_grad()
def _largest_difference(model: Any, weight: Tensor, vocabulary: int) -> float:
    """Between e h and the model's logits, of random hidden states; a bias, which no reward sees, cancels."""
    source = torch.Generator().manual_seed(0)
    h = torch.randn(_ROWS, weight.shape[1], generator=source, device="cpu", dtype=torch.float32)
    h = h.to(weight.device, weight.dtype)
    largest = float(torch.nn.functional.linear(h, weight)[:, :vocabulary].abs().max())
    h = torch.cat((h * (_LARGEST / largest if largest else 1.0), torch.zeros_like(h[:1])))
    ours = torch.nn.functional.linear(h, weight).float()[:, :vocabulary]
    theirs = model.compute_logits(h).float()[:, :vocabulary]
    return float((ours - (theirs - theirs[-1])).abs().max())
