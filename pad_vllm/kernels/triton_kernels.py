"""candidates, token_rewards, unpaid and guide of guidance.py as Triton kernels: the same in, the same out.

A program is a guided row, or a part of one; K candidates are padded to a power of two. Sums and the mean
under the base are taken in the precision of guidance.py, in another order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pad_vllm import guidance
from pad_vllm.guidance import AnswerTokens, GuideResult

_WIDTH = tl.constexpr(64)  # tokens of a block
_BLOCKS = tl.constexpr(16)  # blocks that a program looks through
_FEW = 32  # candidates that one program finds one by one
_INF = tl.constexpr(float("inf"))
_LAST = tl.constexpr(-0x7FFFFFFFFFFFFFFF)  # ranks behind every logit

# What differs from batch to batch: a kernel is not compiled anew for it while requests wait.
_NUMBERS = ["few", "k", "K", "last"]
_PARTS = ["rows", "beta", "top_k", "min_p", "n", "start", "stop", "texts", "spared", "ids"]


def _jit(kernel: Callable[..., Any]) -> Any:
    names = set(inspect.signature(kernel).parameters)
    return triton.jit(
        kernel,
        do_not_specialize=[name for name in _NUMBERS if name in names],
        do_not_specialize_on_alignment=[name for name in _PARTS if name in names],
    )


def candidates(logits: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See guidance.candidates: the k best blocks by their best token, then the k best tokens of these."""
    vocabulary = logits.shape[-1]
    k = min(k, vocabulary)
    if k > _FEW:
        return guidance.candidates(logits, rows, k)
    count, blocks = len(rows), triton.cdiv(vocabulary, _WIDTH.value)
    best = torch.empty(count, blocks, dtype=torch.int64, device=logits.device)
    sizes = logits.stride(0), vocabulary
    _best_of_blocks[count, triton.cdiv(blocks, _BLOCKS.value)](logits, rows, best, *sizes, blocks)
    chosen = best.topk(min(k, blocks), sorted=False).indices
    z = torch.empty(count, k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(count, k, dtype=torch.int64, device=logits.device)
    few = chosen.shape[1]
    _best_tokens[(count,)](
        logits, rows, chosen, z, ids, *sizes, few, k, triton.next_power_of_2(few)
    )
    return z, ids


@triton.jit
def _order(z, number):
    """guidance._order: integers that rank by z and, among equals, by the lower number."""
    known = tl.where(z != z, _INF, z)
    known = tl.where(known == 0.0, 0.0, known)  # the two zeros are equal
    bits = known.to(tl.int32, bitcast=True)
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) << 32) - number.to(tl.int64)


@_jit
def _best_of_blocks(logits, rows, best, stride, vocabulary, blocks):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * _BLOCKS + tl.arange(0, _BLOCKS)
    token = block[:, None] * _WIDTH + tl.arange(0, _WIDTH)[None, :]
    place = tl.load(rows + row) * stride
    z = tl.load(logits + place + token, mask=token < vocabulary, other=-_INF).to(tl.float32)
    top = tl.max(tl.where(z != z, _INF, z), axis=1)
    tl.store(best + row * blocks + block, _order(top, block), mask=block < blocks)


@_jit
def _best_tokens(logits, rows, chosen, z, ids, stride, vocabulary, few, k, SLOTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    block = tl.load(chosen + row * few + slot, mask=slot < few, other=0)
    token = block[:, None] * _WIDTH + tl.arange(0, _WIDTH)[None, :]
    here = (slot[:, None] < few) & (token < vocabulary)
    place = tl.load(rows + row) * stride
    found = tl.load(logits + place + token, mask=here, other=-_INF).to(tl.float32)
    order = tl.reshape(tl.where(here, _order(found, token), _LAST), (SLOTS * _WIDTH,))
    for nth in range(k):
        top = tl.max(order, axis=0)
        best = (-top) & 0xFFFFFFFF
        tl.store(ids + row * k + nth, best)
        tl.store(z + row * k + nth, tl.load(logits + place + best).to(tl.float32))
        order = tl.where(order == top, _LAST, order)


def token_rewards(d_w: Tensor, ids: Tensor, embedding: Tensor) -> Tensor:
    """See guidance.token_rewards."""
    reward = torch.empty(ids.shape, dtype=torch.float32, device=ids.device)
    d_w, ids = d_w.contiguous(), ids.contiguous()
    _dots[ids.shape](d_w, ids, embedding, reward, embedding.stride(0), d_w.shape[-1], ids.shape[1])
    return reward


@_jit
def _dots(d_w, ids, embedding, reward, stride, hidden, K):
    row, candidate = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = tl.load(ids + row * K + candidate)
    total = tl.zeros((1024,), dtype=tl.float32)
    for begin in range(0, hidden, 1024):
        at = begin + tl.arange(0, 1024)
        e = tl.load(embedding + token * stride + at, mask=at < hidden, other=0.0).to(tl.float32)
        total += e * tl.load(d_w + row * hidden + at, mask=at < hidden, other=0.0)
    tl.store(reward + row * K + candidate, tl.sum(total, axis=0))


def guarded_candidates(
    z: Tensor,
    ids: Tensor,
    min_p: Tensor | None,
    end_tokens: Tensor,
    answer: AnswerTokens | None,
    n: Tensor,
    max_n: int,  # noqa: ARG001, guidance.py needs it
) -> Tensor | None:
    """See guidance.unpaid."""
    if min_p is None and answer is None:
        return None
    found = torch.empty(ids.shape, dtype=torch.bool, device=ids.device)
    text = (None, None, None, None) if answer is None else answer
    _unpaid[(len(ids),)](
        *(z, ids, min_p, end_tokens, *text, n, found),
        *(ids.shape[1], len(end_tokens), 0 if answer is None else answer.tokens.stride(0)),
        *(triton.next_power_of_2(ids.shape[1]), 256),
        *(
            min_p is not None,
            answer is not None,
            answer is not None and answer.text_index is not None,
        ),
    )
    return found


@_jit
def _unpaid(
    z,
    ids,
    min_p,
    ends,
    tokens,
    start,
    stop,
    texts,
    n,
    found,
    K,
    last,
    stride,
    SLOTS: tl.constexpr,
    SPAN: tl.constexpr,
    LIKELY: tl.constexpr,
    LOOPS: tl.constexpr,
    SOME: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    known = slot < K
    token = tl.load(ids + row * K + slot, mask=known, other=-1)
    bad = slot < 0
    if LIKELY:
        here = tl.load(z + row * K + slot, mask=known, other=-_INF)
        low = here < tl.load(z + row * K) + tl.log(tl.load(min_p + row))
        for end in range(last):
            low = low & (token != tl.load(ends + end))
        bad = bad | low
    if LOOPS:
        text = tokens + (tl.load(texts + row) if SOME else row) * stride
        size, begin = tl.load(n + row).to(tl.int32), tl.load(start + row).to(tl.int32)
        behind = tl.load(stop + row).to(tl.int32)
        first = tl.where(size > 0, begin + size - 1, behind)
        again = tl.zeros((SLOTS,), dtype=tl.int32)
        for at in range(first, behind, SPAN):
            place = at + tl.arange(0, SPAN)
            same = place < behind
            said = tl.load(text + place, mask=same, other=-1).to(tl.int64)
            for back in range(1, size):
                before = tl.load(text + place - back, mask=place < behind, other=-1)
                same = same & (before == tl.load(text + behind - back))
            hit = same[:, None] & (said[:, None] == token[None, :])
            again = tl.maximum(again, tl.max(hit.to(tl.int32), axis=0))
        bad = bad | (again > 0)
    tl.store(found + row * K + slot, bad, mask=known)


@_jit
def _scores(
    z,
    reward,
    beta,
    top_k,
    unpaid,
    spared,
    score,
    left,
    changed,
    K,
    SLOTS: tl.constexpr,
    GUARDED: tl.constexpr,
    SPARED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    known = slot < K
    base = tl.load(z + row * K + slot, mask=known, other=-_INF)
    legal = known & (base != -_INF) & (slot < tl.load(top_k + row))
    pay = tl.load(reward + row * K + slot, mask=known, other=0.0).to(tl.float32)
    pay = tl.load(beta + row) * pay
    if GUARDED:
        wide = tl.where(legal, base, -_INF).to(tl.float64)
        p = tl.exp(wide - tl.max(wide, axis=0))
        p = tl.where(legal, p, 0.0)
        mean = tl.sum(p * tl.where(legal, pay, 0.0).to(tl.float64), axis=0) / tl.sum(p, axis=0)
        bad = tl.load(unpaid + row * K + slot, mask=known, other=0) != 0
        pay = tl.where(bad & (mean.to(tl.float32) < pay), mean.to(tl.float32), pay)
    made = base + pay
    broken = legal & ((made != made) | (tl.abs(made) == _INF))
    stays = tl.max(broken.to(tl.int32), axis=0) > 0
    if SPARED:
        stays = stays | (tl.load(spared + row) != 0)
    new = tl.where(legal, made, -_INF)
    tl.store(score + row * K + slot, new, mask=known)
    tl.store(left + row, stays)
    best = tl.argmax(tl.where(known, new, -_INF), axis=0)
    tl.store(changed + row, (best != 0) & (stays == 0))


@_jit
def _write(logits, rows, ids, score, left, stride, vocabulary, K, WIDTH: tl.constexpr):
    """-inf everywhere, and the candidates' scores; each token by one program. Nothing in a row that stays."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(left + row) == 0:
        token = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        made = tl.full((WIDTH,), -_INF, dtype=tl.float32)
        for candidate in range(K):
            here = token == tl.load(ids + row * K + candidate)
            made = tl.where(here, tl.load(score + row * K + candidate), made)
        place = tl.load(rows + row) * stride
        tl.store(logits + place + token, made, mask=token < vocabulary)


def guide(
    logits: Tensor,
    rows: Tensor,
    z: Tensor,
    ids: Tensor,
    reward: Tensor,
    beta: Tensor,
    top_k: Tensor,
    guarded: Tensor | None = None,
    excluded: Tensor | None = None,
) -> GuideResult:
    """See guidance.guide."""
    score = torch.empty_like(z)
    left, changed = (torch.empty(len(z), dtype=torch.bool, device=z.device) for _ in range(2))
    K = z.shape[1]
    slots = triton.next_power_of_2(K)
    _scores[(len(z),)](
        *(z, reward, beta, top_k, guarded, excluded, score, left, changed, K),
        *(slots, guarded is not None, excluded is not None),
    )
    vocabulary = logits.shape[-1]
    _write[len(z), triton.cdiv(vocabulary, 2048)](
        logits, rows, ids, score, left, logits.stride(0), vocabulary, K, 2048
    )
    return GuideResult(left, changed)
