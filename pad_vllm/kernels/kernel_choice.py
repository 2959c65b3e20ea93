"""Which code runs the rule on a device: guidance.py, or on a GPU the kernels of it in fused.py.

Both have the same functions, and what guidance.py says is right. The kernels are used where they say it too:
looked at once, on a step of random numbers, which also compiles them before the first request comes.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from pad_vllm import guidance

logger = logging.getLogger(__name__)

_ROWS, _K, _V = 5, 10, 3008


@cache
def rule_for_device(device: torch.device) -> ModuleType:
    """A module with the functions of guidance.py that a step needs."""
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
        "PAD: the rule goes without its Triton kernels, and a step takes longer: %s", why
    )
    return guidance


@torch.no_grad()
def agrees_with_guidance(kernels: ModuleType, device: torch.device) -> bool:
    """Whether a step of random numbers comes out as guidance.py has it."""
    ours, theirs = (_step(code, device) for code in (kernels, guidance))
    return all(
        torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-4, equal_nan=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def _step(code: ModuleType, device: torch.device) -> tuple[Tensor, ...]:
    source = torch.Generator("cpu").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, device="cpu").to(device)

    logits = random(_ROWS, _V) * 3
    rows = torch.tensor([0, 2, 3], device=device)
    text = torch.randint(_V, (3, 48), generator=source, device="cpu").to(device, torch.int32)
    three = torch.ones_like(rows) * 3
    # Of the types that V2's have, so that no other kernel is compiled for a first request.
    said = guidance.AnswerTokens(text, three.int(), three * 12, three.cumsum(0) // 3 - 1)
    z, ids = code.candidates(logits, rows, _K)
    reward = code.token_rewards(random(3, 64), ids, random(_V, 64).bfloat16())
    text[:, 6:8], text[:, 34:36], text[:, 8] = 7, 7, ids[:, 1]  # the second best would loop
    share = torch.full((3,), 0.1, device=device)
    unpaid = code.guarded_candidates(z, ids, share, ids[:1, 3], said, three, 3)
    left = code.guide(logits, rows, z, ids, reward, share * 10, three * 3, unpaid)
    return z, ids, reward, unpaid, logits, *left
