"""The rule at an engine's own hidden states, for engines whose states no PyTorch model computes alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from reference_guidance import guide_row
from torch import Tensor

from pad_vllm import guidance
from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.params import Guidance, parse_guidance
from pad_vllm.request_limits import RequestLimits
from pad_vllm.serving.start.served_adapters import adapter_limits

REWARD = 1e-3  # rewards are float32


class Rule(NamedTuple):
    """lm_head [V, H] in the engine's type, the adapter, and the limits of its requests."""

    weight: Tensor
    adapter: Adapter
    limits: RequestLimits
    resolution: float  # of the engine's type: relative, of a logit
    ends: list[int]


def rule(base: Path, folder: Path, dtype: torch.dtype, resolution: float) -> Rule:
    from transformers import AutoModelForCausalLM

    model, adapter = AutoModelForCausalLM.from_pretrained(base, dtype=dtype), load_adapter(folder)
    limits = adapter_limits(adapter.config, 1e3, 1000)
    return Rule(model.lm_head.weight.detach(), adapter, limits, resolution, ends_of(model))


def ends_of(model: Any) -> list[int]:
    """The tokens that end an answer, which are free of the guard against the unlikely."""
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


def guided_steps(
    requests: list[dict[str, Any]], result: dict[str, Any], limits: RequestLimits
) -> Iterator[tuple[Guidance, dict[str, Tensor], list[int], int]]:
    """(what was asked, what was noted, the answer so far, the token) of each step of guided requests."""
    for request, output, steps in zip(requests, result["outputs"], result["steps"], strict=True):
        asked = parse_guidance(request["sampling"].get("extra_args"), limits)
        said = output["token_ids"]
        for step, (noted, token) in enumerate(zip(steps, said, strict=False)):
            yield asked, {name: torch.tensor(of) for name, of in noted.items()}, said[:step], token


def require_rule(requests: list[dict[str, Any]], result: dict[str, Any], by: Rule) -> str:
    """Candidates, rewards and tokens of every guided step are the rule's; returns how many there were."""
    steps = ties = 0
    for asked, noted, answer, token in guided_steps(requests, result, by.limits):
        steps += 1
        ties += not _require_step(asked, noted, answer, token, by)
    assert steps > 100
    assert ties <= 2
    return f"{steps} steps, {ties} of them ties"


def _require_step(
    asked: Guidance, noted: dict[str, Tensor], answer: list[int], token: int, by: Rule
) -> bool:
    """Whether the token is the best one, and no tie."""
    k, adapter = asked.top_k, by.adapter
    z = (noted["h_B"].to(by.weight.dtype) @ by.weight.T).float()
    ids, logits = noted["ids"][:k], noted["z"][:k]
    near = by.resolution * z.abs().max()
    torch.testing.assert_close(logits, z[ids], rtol=by.resolution, atol=float(near) / 4)
    others = z.index_fill(0, ids, float("-inf"))
    assert others.max() <= logits[-1] + near
    w = torch.tensor(asked.weights)
    d_w = guidance.reward_direction(noted["h_B"], noted["h_T"], w, *adapter.heads)
    reward = by.weight[ids].float() @ d_w
    torch.testing.assert_close(noted["reward"][:k], reward, rtol=REWARD, atol=REWARD)
    few, rewards = others.fill_(float("-inf")), torch.zeros_like(others)
    few[ids], rewards[ids] = logits, reward
    guards = answer, asked.no_repeat, asked.min_p, by.ends
    scores = guide_row(few, rewards, asked.beta, k, *guards)
    best = scores.topk(2)
    if best.indices[0] == token:
        return True
    assert best.values[0] - best.values[1] < 2 * abs(asked.beta) * REWARD
    assert best.indices[1] == token
    return False
