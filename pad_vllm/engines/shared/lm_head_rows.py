"""The rows of a served model's lm_head: e in the rule, from which rewards are computed.

In: a loaded vLLM model of any architecture, also one that reads images. Out: the plain matrix [V, H], or
under tensor parallelism this rank's rows of it; or a ForkError where there is none, or where the logits are
something other than its rows times the hidden state. Knows no adapter's tensors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.kernels import kernel_choice
from pad_vllm.vllm_api import parallel_ranks

_PLAIN_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_ROWS = 4
_LARGEST = 100.0
"""The largest logit that is compared: beyond the caps that models put on their logits."""

_SLACK = 0.01 * _LARGEST
"""Twice what rounding a logit of this size to bfloat16 changes."""


_OWN_REWARD_MODEL = (
    "guide this one, if it reads text alone, by a model beside it: engine 'resident' or 'ray'"
)
"""A way out: the other engines refuse a base that reads images."""


class ForkError(ValueError):
    """A part of the served model cannot be read or forked; the message says which, and what is accepted."""


class LmHeadRows(NamedTuple):
    """The rows of lm_head on this rank of tensor parallelism.

    The ranks have equal parts, in the order in which vLLM gathers their logits: logit number `a` is of row
    `a` of all parts together.
    """

    weight: Tensor
    """[n, H], n the same on every rank; rows beyond the vocabulary are padding."""

    tp_rank: int = 0

    tp_size: int = 1

    def rewards(self, d_w: Tensor, ids: Tensor) -> Tensor:
        """This rank's share of R_w: d_w [G, H], ids [G, K] int64 -> [G, K] float32.

        Each token's reward is in one rank's share, and 0 in all others: the sum over the ranks has the same
        bits in whatever order they are added.
        """
        token_rewards = kernel_choice.rule_for_device(self.weight.device).token_rewards
        if self.tp_size == 1:
            return token_rewards(d_w, ids, self.weight)
        row = ids - self.tp_rank * len(self.weight)
        on_this_rank = (row >= 0) & (row < len(self.weight))
        rewards = token_rewards(d_w, row * on_this_rank, self.weight)
        return rewards.masked_fill(~on_this_rank, 0.0)


def plain_lm_head_rows(model: Any, backbone: Backbone) -> LmHeadRows:
    """The model's lm_head, checked to be a plain matrix [V, H] and the whole of what makes logits.

    Raises ForkError where it is not: on every rank, where one rank finds so.
    """
    head = _lm_head(model)
    weight = getattr(head, "weight", None)
    if weight is None or weight.dtype not in _PLAIN_TYPES or weight.ndim != 2:
        kind = type(getattr(head, "quant_method", head)).__name__
        raise ForkError(
            f"the served model's lm_head is missing, quantised or not a plain matrix ({kind}; looked for in "
            f"{type(model).__name__} and its language model), and rewards are read from its rows; accepted "
            "are float32, bfloat16 and float16. Serve a copy that leaves lm_head as it is (most methods do), "
            f"or {_OWN_REWARD_MODEL}"
        )
    rows = LmHeadRows(weight, getattr(head, "tp_rank", 0), getattr(head, "tp_size", 1))
    num_rows = rows.tp_size * weight.shape[0]
    if num_rows < backbone.vocab_size or weight.shape[1] != backbone.hidden_size:
        raise ForkError(
            f"lm_head is [{num_rows}, {weight.shape[1]}]; the adapter needs [{backbone.vocab_size}, "
            f"{backbone.hidden_size}]; serve the adapter's own backbone"
        )
    _require_plain_logits(model, rows, backbone.vocab_size)
    return rows


def _lm_head(model: Any) -> Any:
    """The model's lm_head, or that of its language model, where it is a wrapper that reads images or sounds
    too (vLLM's SupportsMultiModal). None where there is none. That the logits are made of it is not taken for
    granted: `_require_plain_logits` compares them.
    """
    head = getattr(model, "lm_head", None)
    if head is not None or not hasattr(model, "get_language_model"):
        return head
    try:
        language_model = model.get_language_model()
    except NotImplementedError:
        return None
    return getattr(language_model, "lm_head", None)


def _require_plain_logits(model: Any, rows: LmHeadRows, vocab_size: int) -> None:
    difference = _max_over_ranks(_largest_difference(model, rows, vocab_size))
    if not difference <= _SLACK:
        raise ForkError(
            f"the logits of the served {type(model).__name__} are not lm_head times the hidden state: of "
            f"random states whose largest logit is {_LARGEST:g} they differ by {difference:.3g} (a soft cap, "
            "a scale or a norm), so rewards would be in another unit than logits. Serve a model without "
            f"one, or {_OWN_REWARD_MODEL}"
        )


@torch.no_grad()
def _largest_difference(model: Any, rows: LmHeadRows, vocab_size: int) -> Tensor:
    """[] float32: the largest difference between <e_a, h> and the model's logits, over random hidden states
    and this rank's tokens. A bias cancels: no reward depends on it.
    """
    weight = rows.weight
    source = torch.Generator().manual_seed(0)
    h = torch.randn(_ROWS, weight.shape[1], generator=source, device="cpu", dtype=torch.float32)
    h = torch.cat((h, torch.zeros_like(h[:1]))).to(weight.device, weight.dtype)
    largest = float(_logits_without_bias(model, h, vocab_size).abs().max())
    h = h * (_LARGEST / largest if largest else 1.0)
    model_logits = _logits_without_bias(model, h, vocab_size).split(len(weight), dim=-1)
    if rows.tp_rank >= len(model_logits):  # this rank has only padding
        return h.new_zeros(())
    on_this_rank = model_logits[rows.tp_rank]
    products = torch.nn.functional.linear(h, weight).float()[:, : on_this_rank.shape[-1]]
    return (products - on_this_rank).abs().max()


def _logits_without_bias(model: Any, h: Tensor, vocab_size: int) -> Tensor:
    """The model's logits of h [R, H] less those of its last row, which is zero: [R, V] float32, equal on
    every rank.
    """
    logits = model.compute_logits(h)
    if logits is None:
        raise ForkError(
            "this platform gathers logits on one rank alone, and every rank guides; serve on a platform that "
            "gathers them on all, or without tensor parallelism"
        )
    logits = logits.float()[:, :vocab_size]
    return logits - logits[-1]


def _max_over_ranks(number: Tensor) -> float:
    """The largest of the ranks' numbers, the same on each: so all ranks refuse, or none."""
    rank, size = parallel_ranks.tp_rank_and_size()
    numbers = torch.zeros(size, device=number.device, dtype=torch.float32)
    numbers[rank] = number
    return float(parallel_ranks.sum_over_ranks(numbers).max())
