"""Which code runs the rule on a device: guidance.py, or on a GPU its Triton kernels in triton_kernels.py.

Both have the same functions, and guidance.py defines their results. The kernels are used where steps of
random numbers give the same results: checked once a device, for every size that a kernel is compiled for, so
that no request waits for a compiler.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from pad_vllm import guidance
from pad_vllm.answer_tokens import AnswerTokens

logger = logging.getLogger(__name__)


class StepSizes(NamedTuple):
    """What the kernels of a served model are compiled for."""

    columns: int = 3008
    """Of the logits."""

    token_columns: int = 3000
    """The leading ones, which may be candidates."""

    hidden_size: int = 64
    dtype: torch.dtype = torch.bfloat16
    """Of lm_head."""

    max_candidates: int = 16
    """The most that a request may ask for (`max_top_k`)."""


class _RandomStep(NamedTuple):
    """What the steps that are checked are computed from; always the same numbers."""

    logits: Tensor  # [5, columns] float32
    text: Tensor  # [_GUIDED, 48] int32 token ids
    directions: Tensor  # [_GUIDED, H] float32
    embedding: Tensor  # [64, H] of lm_head's dtype


_GUIDED = 3  # rows of a step that are guided
_rules: dict[torch.device, ModuleType] = {}


def rule_for_device(device: torch.device) -> ModuleType:
    """The module whose candidates, token_rewards, capped_candidates and guide a step on `device` calls: the
    one that was chosen for it, or else chosen now.
    """
    return _rules[device] if device in _rules else choose_rule(device, StepSizes())


def choose_rule(device: torch.device, sizes: StepSizes) -> ModuleType:
    """Choose the module for `device` from now on, and compile its kernels.

    Logs a warning where a GPU runs guidance.py, because its kernels failed or differ.
    """
    _rules[device] = guidance if device.type != "cuda" else _kernels_or_guidance(device, sizes)
    return _rules[device]


def _kernels_or_guidance(device: torch.device, sizes: StepSizes) -> ModuleType:
    try:
        from pad_vllm.kernels import triton_kernels

        if agrees_with_guidance(triton_kernels, device, sizes):
            return triton_kernels
        why = "its results differ from guidance.py's"
    except Exception as error:  # noqa: BLE001, whatever it is, guidance.py does the same
        why = f"{type(error).__name__}: {error}"
    logger.warning(
        "PAD: the rule runs without its Triton kernels, and a step takes longer: %s", why
    )
    return guidance


@torch.no_grad()
def agrees_with_guidance(kernels: ModuleType, device: torch.device, sizes: StepSizes) -> bool:
    """Whether `kernels` and guidance.py return the same for steps of random numbers on `device`."""
    step = _random_step(device, sizes)
    return all(
        torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-4, equal_nan=True)
        for k in _candidate_counts(sizes)
        for a, b in zip(
            *(_run_step(rule, step, sizes.token_columns, k) for rule in (kernels, guidance)),
            strict=True,
        )
    )


def _candidate_counts(sizes: StepSizes) -> Iterator[int]:
    """Powers of two, by which kernels are compiled, up to the one that holds the most candidates."""
    most = min(sizes.max_candidates, sizes.token_columns)
    return itertools.takewhile(lambda k: k < 2 * most, (2**power for power in range(32)))


def _random_step(device: torch.device, sizes: StepSizes) -> _RandomStep:
    source = torch.Generator("cpu").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, device="cpu").to(device)

    text = torch.randint(sizes.token_columns, (_GUIDED, 48), generator=source, device="cpu")
    return _RandomStep(
        logits=random(5, sizes.columns) * 3,
        text=text.to(device, torch.int32),
        directions=random(_GUIDED, sizes.hidden_size),
        embedding=random(64, sizes.hidden_size).to(sizes.dtype),
    )


def _run_step(
    rule: ModuleType, step: _RandomStep, token_columns: int, k: int
) -> tuple[Tensor, ...]:
    """All that the rule's functions in a module return for a step of three guided rows."""
    logits, text = step.logits, step.text.clone()
    device = logits.device
    rows = torch.tensor([0, 2, 3], device=device)
    three = torch.ones_like(rows) * 3
    # Of the dtypes that V2's tensors have, so that no other kernel is compiled for a first request.
    answer = AnswerTokens(
        tokens=text, start=three, stop=three * 12, text_index=three.cumsum(0) // 3 - 1
    )
    z, ids = rule.candidates(logits[:, :token_columns], rows, k)
    reward = rule.token_rewards(step.directions, ids % len(step.embedding), step.embedding)
    text[:, 6:8], text[:, 34:36], text[:, 8] = 7, 7, ids[:, -1]  # the last candidate would repeat
    min_p = torch.full((_GUIDED,), 0.1, device=device)
    n = {"n": three, "max_n": 3, "eos_token_ids": ids[:1, 0]}
    guards: tuple[Tensor | None, ...] = (
        None,
        rule.capped_candidates(z, ids, min_p=min_p, answer=None, **n),
        rule.capped_candidates(z, ids, min_p=None, answer=answer, **n),
        rule.capped_candidates(z, ids, min_p=min_p, answer=answer, **n),
    )
    returned = [z, ids, reward, *(capped for capped in guards if capped is not None)]
    some = rows == rows[0]
    for capped, excluded in [*((capped, None) for capped in guards), (guards[-1], some)]:
        written = logits.clone()
        result = rule.guide(
            written,
            rows=rows,
            z=z,
            ids=ids,
            reward=reward,
            beta=min_p * 10,
            top_k=three * 3,
            capped=capped,
            excluded=excluded,
        )
        returned += [written, *result]
    return tuple(returned)
