"""The output embedding of a served model: e, the rows of lm_head that rewards are read from.

In: a loaded vLLM model of any architecture. Out: the plain matrix [V, H], or under tensor parallelism this
rank's rows of it; or a ForkError where there is none, or where the logits are something other than its rows
times the hidden state. Knows no adapter's tensors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.kernels import kernel_choice
from pad_vllm.vllm_api import parallel_ranks

_PLAIN = (torch.float32, torch.bfloat16, torch.float16)
_ROWS = 4
_LARGEST = 100.0
"""The largest logit that is compared: beyond the caps that models put on theirs."""

_SLACK = 0.01 * _LARGEST
"""Twice what rounding a logit of this size to bfloat16 changes."""


class ForkError(ValueError):
    """The served model has a part that cannot be read or forked; the message says which, and what can."""


class LmHeadRows(NamedTuple):
    """The rows of e that this rank of tensor parallelism has: equal parts, in the order in which vLLM gathers
    the ranks' logits, so that logit number `a` is of row `a` of all parts together.
    """

    weight: Tensor
    """[n, H], n the same on every rank; what exceeds the vocabulary pads it."""

    tp_rank: int = 0

    tp_size: int = 1

    def rewards(self, d_w: Tensor, ids: Tensor) -> Tensor:
        """This rank's share of R_w: d_w [G, H], ids [G, K] -> [G, K] float32. Each token's reward is in one
        rank's share, and 0 in all others: their sum has the same bits in whatever order they are added.
        """
        token_rewards = kernel_choice.rule_for_device(self.weight.device).token_rewards
        if self.tp_size == 1:
            return token_rewards(d_w, ids, self.weight)
        row = ids - self.tp_rank * len(self.weight)
        here = (row >= 0) & (row < len(self.weight))
        return token_rewards(d_w, row * here, self.weight).masked_fill(~here, 0.0)


def plain_lm_head_rows(model: Any, config: Backbone) -> LmHeadRows:
    """e, of a plain lm_head [V, H]. Raises ForkError where it is packed, missing or not the whole of what
    makes logits; on every rank where it does on one.
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
    embedding = LmHeadRows(weight, getattr(head, "tp_rank", 0), getattr(head, "tp_size", 1))
    rows = embedding.tp_size * weight.shape[0]
    if rows < config.vocab_size or weight.shape[1] != config.hidden_size:
        raise ForkError(
            f"lm_head is [{rows}, {weight.shape[1]}]; the adapter needs [{config.vocab_size}, "
            f"{config.hidden_size}]; serve the adapter's own backbone"
        )
    _require_plain_logits(model, embedding, config.vocab_size)
    return embedding


def _require_plain_logits(model: Any, embedding: LmHeadRows, vocabulary: int) -> None:
    difference = _largest_of_all(_largest_difference(model, embedding, vocabulary))
    if not difference <= _SLACK:
        raise ForkError(
            f"the logits of the served {type(model).__name__} are not lm_head times the hidden state: of "
            f"random states whose largest logit is {_LARGEST:g} they differ by {difference:.3g} (a soft cap, "
            "a scale or a norm), so rewards would be in another unit than logits. Serve a model without "
            "one, or guide this one with a reward model of its own: engine 'resident' or 'ray'"
        )


@torch.no_grad()
def _largest_difference(model: Any, embedding: LmHeadRows, vocabulary: int) -> Tensor:
    """Between e h and the model's logits, of random hidden states and this rank's tokens; a bias, which no
    reward sees, cancels.
    """
    weight = embedding.weight
    source = torch.Generator().manual_seed(0)
    h = torch.randn(_ROWS, weight.shape[1], generator=source, device="cpu", dtype=torch.float32)
    h = torch.cat((h, torch.zeros_like(h[:1]))).to(weight.device, weight.dtype)
    largest = float(_logits(model, h, vocabulary).abs().max())
    h = h * (_LARGEST / largest if largest else 1.0)
    theirs = _logits(model, h, vocabulary).split(len(weight), dim=-1)
    if embedding.tp_rank >= len(theirs):  # it has padding alone
        return h.new_zeros(())
    mine = theirs[embedding.tp_rank]
    ours = torch.nn.functional.linear(h, weight).float()[:, : mine.shape[-1]]
    return (ours - mine).abs().max()


def _logits(model: Any, h: Tensor, vocabulary: int) -> Tensor:
    """[R, V] less those of the last row, the same on every rank."""
    logits = model.compute_logits(h)
    if logits is None:
        raise ForkError(
            "this platform gathers logits on one rank alone, and every rank guides; serve on a platform that "
            "gathers them on all, or without tensor parallelism"
        )
    logits = logits.float()[:, :vocabulary]
    return logits - logits[-1]


def _largest_of_all(number: Tensor) -> float:
    """Over the ranks, so that all of them refuse or none."""
    rank, size = parallel_ranks.tp_rank_and_size()
    every = torch.zeros(size, device=number.device, dtype=torch.float32)
    every[rank] = number
    return float(parallel_ranks.sum_over_ranks(every).max())
