"""The guided rows' answers so far, and which candidates would repeat an n-gram of them.

Tensors in, tensors out. Shapes: G guided rows, K candidates, L tokens of a text. Nothing here synchronises
the device, and at most 4 MiB are compared at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LOOP_LENGTH, MAX_LOOP = 3, 12
"""Least length of a repeated n-gram that costs, where a row names none, and the longest that counts."""

_MAX_COMPARED = 1 << 22  # pairs of an answer's token and a candidate at once, a byte each


class AnswerTokens(NamedTuple):
    """The answers of the guided rows so far. Token t of a row's answer is its text's [start + t]."""

    tokens: Tensor
    """[G, L] integers, one text a row; with `text_index` [S, L], texts of which the rows use some."""

    start: Tensor
    """[G] integers: index in its text of the answer's first token."""

    stop: Tensor
    """[G] integers: index after the answer's last token. What a text holds from there on is not read."""

    text_index: Tensor | None = None
    """[G] int64: index of each row's text in `tokens`; None where `tokens` has one text for each row."""

    def row_tokens(self) -> Tensor:
        """[G, L] integers: the text of each guided row. Copies where `text_index` is set."""
        return (
            self.tokens if self.text_index is None else self.tokens.index_select(0, self.text_index)
        )


def repeats_ngram(answer: AnswerTokens, ids: Tensor, n: Tensor, max_n: int) -> Tensor:
    """Find the candidates that would complete an n-gram which is already in the answer.

    Args:
        answer: the answers so far.
        ids: [G, K] int64 token ids of the candidates.
        n: [G] integers, lengths of the n-grams; 0 for rows without this guard.
        max_n: at least the largest of `n`, on the host.

    Returns:
        [G, K] bool.
    """
    tokens = answer.row_tokens().long()
    if not tokens.shape[1]:
        return torch.zeros_like(ids, dtype=torch.bool)
    n = n.unsqueeze(-1)
    completes = (n > 0) & (_repeated_lengths(answer, tokens, max_n) >= n)
    return _by_rows(
        lambda text, row_ids: (text.unsqueeze(1) == row_ids.unsqueeze(-1)).any(-1),
        tokens.masked_fill(~completes, -1),
        ids,
    )


def loop_prices(
    answer: AnswerTokens, ids: Tensor, n: Tensor, price: Tensor, eos_token_ids: Tensor
) -> Tensor:
    """What candidates cost that would complete an n-gram that the answer has already: the longer, the more.

    A candidate that would complete one of m tokens, at most MAX_LOOP, costs price * (m - n + 1) from m = n
    on. Rewards withheld cannot end a loop of the base's own; a price that grows with the loop does (the idea
    is DRY's, a sampler of llama.cpp). Tokens that end an answer are free.

    Args:
        answer: the answers so far.
        ids: [G, K] int64 token ids of the candidates.
        n: [G] integers; 0 counts as LOOP_LENGTH.
        price: [G] logits a token; 0 for rows without it.
        eos_token_ids: [E] int64 ids of the tokens that end an answer.

    Returns:
        [G, K] float32.
    """
    tokens = answer.row_tokens().long()
    if not tokens.shape[1]:
        return torch.zeros_like(ids, dtype=torch.float32)
    longest = _by_rows(
        lambda text, row_ids, lengths: (
            (text.unsqueeze(1) == row_ids.unsqueeze(-1)) * lengths.unsqueeze(1)
        ).amax(-1),
        tokens,
        ids,
        _repeated_lengths(answer, tokens, MAX_LOOP),
    )
    least = torch.where(n > 0, n, LOOP_LENGTH).unsqueeze(-1)
    costs = (longest - least + 1).clamp(min=0) * price.unsqueeze(-1)
    return costs.masked_fill((ids.unsqueeze(-1) == eos_token_ids).any(-1), 0.0)


def _repeated_lengths(answer: AnswerTokens, tokens: Tensor, longest: int) -> Tensor:
    """How long an n-gram ends at each token whose other tokens are also the answer's last.

    Args:
        answer: the answers so far.
        tokens: [G, L] int64, their texts.
        longest: what lengths are cut to.

    Returns:
        [G, L] int8; 0 outside the answer.
    """
    start, stop = answer.start.unsqueeze(-1), answer.stop.unsqueeze(-1)
    position = torch.arange(tokens.shape[1], device=tokens.device)
    matches = (position >= start) & (position < stop)
    lengths = matches.to(torch.int8)
    for back in range(1, longest):
        last = tokens.gather(1, (stop - back).clamp(min=0))
        # What rolls in at the front is not looked at: it stands before the answer's start.
        matches &= (position - back >= start) & (tokens.roll(back, 1) == last)
        lengths += matches
    return lengths


def _by_rows(compare: Callable[..., Tensor], text: Tensor, ids: Tensor, *more: Tensor) -> Tensor:
    """[G, K]: `compare` of texts [G, L] with candidates ids [G, K] and what `more` has of them, in pieces."""
    rows_at_once = max(1, _MAX_COMPARED // (text.shape[1] * ids.shape[1]))
    parts = (tensor.split(rows_at_once) for tensor in (text, ids, *more))
    return torch.cat([compare(*rows) for rows in zip(*parts, strict=True)])
