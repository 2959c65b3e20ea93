"""candidates, token_rewards, capped_candidates and guide of guidance.py as Triton kernels: same in and out.

A program handles one guided row, or a part of one; K candidates are padded to a power of two. Sums and the
mean under the base are taken in the precision of guidance.py, in another order. Kernels are launched by
position, in the order of their signatures: 18 keywords cost the host 5 microseconds a launch.
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
from pad_vllm.answer_tokens import AnswerTokens
from pad_vllm.guidance import GuideResult

_BLOCK = tl.constexpr(64)  # tokens of the vocabulary that share one maximum
_BLOCKS_PER_PROGRAM = tl.constexpr(16)
_MAX_K = 32  # candidates that one program finds one after the other
_ANSWER_SPAN = 256  # tokens of an answer that a program compares at once
_WRITE_SPAN = 2048  # logits that a program writes
_INF = tl.constexpr(float("inf"))
_LOWEST_KEY = tl.constexpr(-0x7FFFFFFFFFFFFFFF)  # ranks below the key of every logit

# Arguments that differ from batch to batch: a kernel is not compiled anew for their values, or for how their
# tensors are aligned, while requests wait.
_NOT_SPECIALIZED = ["num_chosen", "k", "K", "num_eos_token_ids", "text_stride"]
_NOT_ALIGNED = [
    *("rows", "beta", "top_k", "min_p", "n", "start", "stop"),
    *("text_index", "excluded", "ids"),
]


def _jit(kernel: Callable[..., Any]) -> Any:
    """triton.jit, with those of the arguments above that the kernel has."""
    names = set(inspect.signature(kernel).parameters)
    return triton.jit(
        kernel,
        do_not_specialize=[name for name in _NOT_SPECIALIZED if name in names],
        do_not_specialize_on_alignment=[name for name in _NOT_ALIGNED if name in names],
    )


def candidates(logits: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k best tokens of the guided rows: first the k blocks with the best tokens, then in these.

    Args and Returns: see guidance.candidates.
    """
    vocabulary = logits.shape[-1]
    k = min(k, vocabulary)
    num_rows, num_blocks = len(rows), triton.cdiv(vocabulary, _BLOCK.value)
    block_keys = torch.empty(num_rows, num_blocks, dtype=torch.int64, device=logits.device)
    _best_of_blocks[num_rows, triton.cdiv(num_blocks, _BLOCKS_PER_PROGRAM.value)](
        logits, rows, block_keys, logits.stride(0), vocabulary, num_blocks
    )
    chosen = block_keys.topk(min(k, num_blocks), sorted=False).indices
    if k > _MAX_K:
        return _best_of_many_tokens(logits, rows, chosen, k)
    z = torch.empty(num_rows, k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(num_rows, k, dtype=torch.int64, device=logits.device)
    _best_tokens[(num_rows,)](
        logits,
        rows,
        chosen,
        z,
        ids,
        logits.stride(0),
        vocabulary,
        chosen.shape[1],
        k,
        triton.next_power_of_2(chosen.shape[1]),
    )
    return z, ids


def _best_of_many_tokens(
    logits: Tensor, rows: Tensor, chosen: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """z, ids [G, k]: the best tokens of the chosen [G, n] blocks, best first. In PyTorch: a program that
    finds them one after the other would take too long.
    """
    vocabulary, block = logits.shape[-1], _BLOCK.value
    ids = (chosen.unsqueeze(-1) * block + torch.arange(block, device=chosen.device)).flatten(1)
    is_token = ids < vocabulary
    ids = ids.clamp(max=vocabulary - 1)
    z = logits[rows.unsqueeze(-1), ids].float()
    keys = guidance.sort_keys(z, ids).masked_fill(~is_token, _LOWEST_KEY.value)
    best = keys.topk(k).indices
    return z.gather(1, best), ids.gather(1, best)


@triton.jit
def _sort_key(z, number):
    """guidance.sort_keys: integers that rank by z and, among equals, by the lower number."""
    comparable = tl.where(z != z, _INF, z)
    comparable = tl.where(comparable == 0.0, 0.0, comparable)  # the two zeros are equal
    bits = comparable.to(tl.int32, bitcast=True)
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) << 32) - number.to(tl.int64)


@_jit
def _best_of_blocks(logits, rows, block_keys, stride, vocabulary, num_blocks):
    """block_keys [G, num_blocks]: the sort key of each block's best logit."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * _BLOCKS_PER_PROGRAM + tl.arange(0, _BLOCKS_PER_PROGRAM)
    token = block[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    row_start = tl.load(rows + row) * stride
    z = tl.load(logits + row_start + token, mask=token < vocabulary, other=-_INF).to(tl.float32)
    best = tl.max(tl.where(z != z, _INF, z), axis=1)
    tl.store(block_keys + row * num_blocks + block, _sort_key(best, block), mask=block < num_blocks)


@_jit
def _best_tokens(
    logits, rows, chosen, z, ids, stride, vocabulary, num_chosen, k, SLOTS: tl.constexpr
):
    """z, ids [G, k]: the best tokens of the chosen [G, num_chosen] blocks, best first."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    block = tl.load(chosen + row * num_chosen + slot, mask=slot < num_chosen, other=0)
    token = block[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    is_token = (slot[:, None] < num_chosen) & (token < vocabulary)
    row_start = tl.load(rows + row) * stride
    logit = tl.load(logits + row_start + token, mask=is_token, other=-_INF).to(tl.float32)
    key = tl.reshape(tl.where(is_token, _sort_key(logit, token), _LOWEST_KEY), (SLOTS * _BLOCK,))
    for nth in range(k):
        highest = tl.max(key, axis=0)
        best = (-highest) & 0xFFFFFFFF
        tl.store(ids + row * k + nth, best)
        tl.store(z + row * k + nth, tl.load(logits + row_start + best).to(tl.float32))
        key = tl.where(key == highest, _LOWEST_KEY, key)


def token_rewards(d_w: Tensor, ids: Tensor, embedding: Tensor) -> Tensor:
    """Compute R_w of tokens by their ids, without a copy of their embeddings.

    Args and Returns: see guidance.token_rewards.
    """
    reward = torch.empty(ids.shape, dtype=torch.float32, device=ids.device)
    d_w, ids = d_w.contiguous(), ids.contiguous()
    _dot_products[ids.shape](
        d_w, ids, embedding, reward, embedding.stride(0), d_w.shape[-1], ids.shape[1]
    )
    return reward


@_jit
def _dot_products(d_w, ids, embedding, reward, stride, hidden, K):
    """reward [G, K]: a program computes one of them."""
    row, candidate = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = tl.load(ids + row * K + candidate)
    total = tl.zeros((1024,), dtype=tl.float32)
    for begin in range(0, hidden, 1024):
        at = begin + tl.arange(0, 1024)
        e = tl.load(embedding + token * stride + at, mask=at < hidden, other=0.0).to(tl.float32)
        total += e * tl.load(d_w + row * hidden + at, mask=at < hidden, other=0.0)
    tl.store(reward + row * K + candidate, tl.sum(total, axis=0))


def capped_candidates(
    z: Tensor,
    ids: Tensor,
    min_p: Tensor | None,
    eos_token_ids: Tensor,
    answer: AnswerTokens | None,
    n: Tensor,
    max_n: int,  # noqa: ARG001, guidance.py needs it
) -> Tensor | None:
    """Find the candidates that either guard takes.

    Args and Returns: see guidance.capped_candidates.
    """
    if min_p is None and answer is None:
        return None
    capped = torch.empty(ids.shape, dtype=torch.bool, device=ids.device)
    _find_capped[(len(ids),)](
        z,
        ids,
        min_p,
        eos_token_ids,
        None if answer is None else answer.tokens,
        None if answer is None else answer.start,
        None if answer is None else answer.stop,
        None if answer is None else answer.text_index,
        n,
        capped,
        ids.shape[1],
        len(eos_token_ids),
        0 if answer is None else answer.tokens.stride(0),
        triton.next_power_of_2(ids.shape[1]),
        _ANSWER_SPAN,
        min_p is not None,
        answer is not None,
        answer is not None and answer.text_index is not None,
    )
    return capped


@_jit
def _find_capped(
    z,
    ids,
    min_p,
    eos_token_ids,
    tokens,
    start,
    stop,
    text_index,
    n,
    capped,
    K,
    num_eos_token_ids,
    text_stride,
    SLOTS: tl.constexpr,
    SPAN: tl.constexpr,
    MIN_P: tl.constexpr,
    NO_REPEAT: tl.constexpr,
    INDEXED: tl.constexpr,
):
    """capped [G, K]. MIN_P, NO_REPEAT: the guard is on. INDEXED: a row's text is tokens[text_index[row]]."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    is_candidate = slot < K
    token = tl.load(ids + row * K + slot, mask=is_candidate, other=-1)
    is_capped = slot < 0
    if MIN_P:
        logit = tl.load(z + row * K + slot, mask=is_candidate, other=-_INF)
        below = logit < tl.load(z + row * K) + tl.log(tl.load(min_p + row))
        for which in range(num_eos_token_ids):
            below = below & (token != tl.load(eos_token_ids + which))
        is_capped = is_capped | below
    if NO_REPEAT:
        text = tokens + (tl.load(text_index + row) if INDEXED else row) * text_stride
        size, begin = tl.load(n + row).to(tl.int32), tl.load(start + row).to(tl.int32)
        end = tl.load(stop + row).to(tl.int32)
        first = tl.where(
            size > 0, begin + size - 1, end
        )  # the first n-gram of the answer ends there
        repeats = tl.zeros((SLOTS,), dtype=tl.int32)
        for at in range(first, end, SPAN):
            position = at + tl.arange(0, SPAN)
            matches = position < end
            completion = tl.load(text + position, mask=matches, other=-1).to(tl.int64)
            for back in range(1, size):
                before = tl.load(text + position - back, mask=position < end, other=-1)
                matches = matches & (before == tl.load(text + end - back))
            hit = matches[:, None] & (completion[:, None] == token[None, :])
            repeats = tl.maximum(repeats, tl.max(hit.to(tl.int32), axis=0))
        is_capped = is_capped | (repeats > 0)
    tl.store(capped + row * K + slot, is_capped, mask=is_candidate)


def guide(
    logits: Tensor,
    rows: Tensor,
    z: Tensor,
    ids: Tensor,
    reward: Tensor,
    beta: Tensor,
    top_k: Tensor,
    capped: Tensor | None = None,
    prices: Tensor | None = None,
    excluded: Tensor | None = None,
) -> GuideResult:
    """Write the guided scores into `logits`, in place.

    Args and Returns: see guidance.guide.
    """
    if prices is not None:
        z = z - prices  # rows that stay unguided are not written
    score = torch.empty_like(z)
    unguided, changed = (torch.empty(len(z), dtype=torch.bool, device=z.device) for _ in range(2))
    K = z.shape[1]
    _scores[(len(z),)](
        z,
        reward,
        beta,
        top_k,
        capped,
        excluded,
        score,
        unguided,
        changed,
        K,
        triton.next_power_of_2(K),
        capped is not None,
        excluded is not None,
    )
    vocabulary = logits.shape[-1]
    _write[len(z), triton.cdiv(vocabulary, _WRITE_SPAN)](
        logits,
        rows,
        ids,
        score,
        unguided,
        logits.stride(0),
        vocabulary,
        K,
        _WRITE_SPAN,
    )
    return GuideResult(unguided, changed)


@_jit
def _scores(
    z,
    reward,
    beta,
    top_k,
    capped,
    excluded,
    score,
    unguided,
    changed,
    K,
    SLOTS: tl.constexpr,
    CAPPED: tl.constexpr,
    EXCLUDED: tl.constexpr,
):
    """score [G, K]; unguided, changed [G]. CAPPED, EXCLUDED: whether there are such tensors."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    is_candidate = slot < K
    base = tl.load(z + row * K + slot, mask=is_candidate, other=-_INF)
    legal = is_candidate & (base != -_INF) & (slot < tl.load(top_k + row))
    scaled = tl.load(reward + row * K + slot, mask=is_candidate, other=0.0).to(tl.float32)
    scaled = tl.load(beta + row) * scaled
    if CAPPED:
        wide = tl.where(legal, base, -_INF).to(tl.float64)
        p = tl.exp(wide - tl.max(wide, axis=0))
        p = tl.where(legal, p, 0.0)
        mean = tl.sum(p * tl.where(legal, scaled, 0.0).to(tl.float64), axis=0) / tl.sum(p, axis=0)
        lowered = tl.load(capped + row * K + slot, mask=is_candidate, other=0) != 0
        lowered = lowered & (mean.to(tl.float32) < scaled)
        scaled = tl.where(lowered, mean.to(tl.float32), scaled)
    total = base + scaled
    broken = legal & ((total != total) | (tl.abs(total) == _INF))
    is_unguided = tl.max(broken.to(tl.int32), axis=0) > 0
    if EXCLUDED:
        is_unguided = is_unguided | (tl.load(excluded + row) != 0)
    new = tl.where(legal, total, -_INF)
    tl.store(score + row * K + slot, new, mask=is_candidate)
    tl.store(unguided + row, is_unguided)
    best = tl.argmax(tl.where(is_candidate, new, -_INF), axis=0)
    tl.store(changed + row, (best != 0) & (is_unguided == 0))


@_jit
def _write(logits, rows, ids, score, unguided, stride, vocabulary, K, SPAN: tl.constexpr):
    """logits: -inf but for the candidates' scores; each token by one program. No write to unguided rows."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(unguided + row) == 0:
        token = tl.program_id(1) * SPAN + tl.arange(0, SPAN)
        new = tl.full((SPAN,), -_INF, dtype=tl.float32)
        for candidate in range(K):
            is_candidate = token == tl.load(ids + row * K + candidate)
            new = tl.where(is_candidate, tl.load(score + row * K + candidate), new)
        row_start = tl.load(rows + row) * stride
        tl.store(logits + row_start + token, new, mask=token < vocabulary)
