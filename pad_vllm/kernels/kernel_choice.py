"""Which code runs the rule on a device: guidance.py, or on a GPU its Triton kernels in triton_kernels.py.

Both have the same functions, and guidance.py defines their results. The kernels are used where a step of
random numbers gives the same results: checked once a device, which also compiles them before the first
request.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from pad_vllm import guidance

logger = logging.getLogger(__name__)

_ROWS, _K, _V = 5, 10, 3008  # logits rows, candidates and vocabulary of the step that is checked


@cache
def rule_for_device(device: torch.device) -> ModuleType:
    """The module whose candidates, token_rewards, capped_candidates and guide a step on `device` calls.

    Logs a warning where a GPU runs guidance.py, because its kernels failed or differ.
    """
    if device.type != "cuda":
        return guidance
    try:
        from pad_vllm.kernels import triton_kernels

        if agrees_with_guidance(triton_kernels, device):
            return triton_kernels
        why = "its results differ from guidance.py's"
    except Exception as error:  # noqa: BLE001, whatever it is, guidance.py does the same
        why = f"{type(error).__name__}: {error}"
    logger.warning(
        "PAD: the rule runs without its Triton kernels, and a step takes longer: %s", why
    )
    return guidance


@torch.no_grad()
def agrees_with_guidance(kernels: ModuleType, device: torch.device) -> bool:
    """Whether `kernels` and guidance.py return the same for one step of random numbers on `device`."""
    found, expected = (_run_step(rule, device) for rule in (kernels, guidance))
    return all(
        torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-4, equal_nan=True)
        for a, b in zip(found, expected, strict=True)
    )


def _run_step(rule: ModuleType, device: torch.device) -> tuple[Tensor, ...]:
    """All that the rule's functions in a module return for a step of three guided rows, always the same."""
    source = torch.Generator("cpu").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, device="cpu").to(device)

    logits = random(_ROWS, _V) * 3
    rows = torch.tensor([0, 2, 3], device=device)
    text = torch.randint(_V, (3, 48), generator=source, device="cpu").to(device, torch.int32)
    three = torch.ones_like(rows) * 3
    # Of the dtypes that V2's tensors have, so that no other kernel is compiled for a first request.
    answer = guidance.AnswerTokens(
        tokens=text, start=three.int(), stop=three * 12, text_index=three.cumsum(0) // 3 - 1
    )
    z, ids = rule.candidates(logits, rows, _K)
    reward = rule.token_rewards(random(3, 64), ids, random(_V, 64).bfloat16())
    text[:, 6:8], text[:, 34:36], text[:, 8] = 7, 7, ids[:, 1]  # the second best would repeat
    min_p = torch.full((3,), 0.1, device=device)
    capped = rule.capped_candidates(
        z, ids, min_p=min_p, eos_token_ids=ids[:1, 3], answer=answer, n=three, max_n=3
    )
    result = rule.guide(
        logits,
        rows=rows,
        z=z,
        ids=ids,
        reward=reward,
        beta=min_p * 10,
        top_k=three * 3,
        capped=capped,
    )
    return z, ids, reward, capped, logits, *result
