"""How much of a Ray actor's work overlaps with the base's forward: some steps as a Chrome trace.

In: the model that an engine with `ray` serves in this process, a call that has it generate. Out: the trace's
file, for chrome://tracing or ui.perfetto.dev, and mean times of a step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_SKIPPED = 4  # steps at the beginning, with the prompts' prefill


class RecordedCall(NamedTuple):
    """One call of a recorded method; times are Unix seconds."""

    method: str
    start: float
    end: float


class TracedStep(NamedTuple):
    """Unix seconds."""

    forward_start: float
    logits_start: float
    rewards_end: float


def trace_ray_overlap(model: Any, generate: Callable[[], None], out: Path) -> dict[str, Any]:
    """Trace the steps of one call.

    Args:
        model: The torch module that the engine serves.
        generate: Has the engine generate a batch of guided answers.
        out: The trace's file.

    Returns:
        steps: how many were traced; mean milliseconds of the base's forward, of the reward model, and from
        the forward's start to the rewards; of_it_while_the_base_ran: the share of the reward model's time
        that overlaps with the base's forward.
    """
    steps = _traced_steps(_record_calls(model, generate))
    busy = model.pad_rewards.scorer.busy()[0]
    events, overlap, worked = [], 0.0, 0.0
    for step in steps:
        events.append(_event("base forward", "vLLM", step.forward_start, step.logits_start))
        events.append(_event("collect rewards", "vLLM", step.logits_start, step.rewards_end))
    for start, end in busy:
        if steps[0].forward_start <= start <= steps[-1].rewards_end:
            events.append(_event("reward model", "Ray actor", start, end))
            worked += end - start
            overlap += sum(
                max(0.0, min(end, step.logits_start) - max(start, step.forward_start))
                for step in steps
            )
    out.write_text(json.dumps({"traceEvents": events}) + "\n", "utf-8")
    forward = sum(step.logits_start - step.forward_start for step in steps)
    to_rewards = sum(step.rewards_end - step.forward_start for step in steps)
    return {
        "steps": len(steps),
        "base_forward_ms": round(1e3 * forward / len(steps), 2),
        "reward_model_ms": round(1e3 * worked / len(steps), 2),
        "from_forward_to_rewards_ms": round(1e3 * to_rewards / len(steps), 2),
        "of_it_while_the_base_ran": round(overlap / worked, 3) if worked else 0.0,
    }


def _record_calls(model: Any, generate: Callable[[], None]) -> list[RecordedCall]:
    """The calls around every forward, in order."""
    from vllm import envs

    rewards = model.pad_rewards
    # The last call before a forward: on V1 it gets the tokens that are fed, on V2 a way to read the last.
    before_forward = (
        (rewards, "before_forward_v2")
        if envs.VLLM_USE_V2_MODEL_RUNNER
        else (model, "pad_on_forward_start")
    )
    recorded = {
        "begin": before_forward,
        "receive": (rewards, "receive"),
        "rewards": (rewards, "rewards"),
    }
    calls: list[RecordedCall] = []

    def recording(label: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.time()
            result = method(*args)
            calls.append(RecordedCall(label, start, time.time()))
            return result

        return call

    originals = {label: getattr(owner, name) for label, (owner, name) in recorded.items()}
    for label, (owner, name) in recorded.items():
        setattr(owner, name, recording(label, originals[label]))
    generate()
    for label, (owner, name) in recorded.items():
        setattr(owner, name, originals[label])
    return calls


def _traced_steps(calls: Sequence[RecordedCall]) -> list[TracedStep]:
    steps = [
        TracedStep(begin.end, receive.start, rewards.end)
        for begin, receive, rewards in zip(calls, calls[1:], calls[2:], strict=False)
        if (begin.method, receive.method, rewards.method) == ("begin", "receive", "rewards")
    ]
    return steps[_SKIPPED:-1]


def _event(name: str, process: str, start: float, end: float) -> dict[str, Any]:
    """One bar of a Chrome trace; start, end: Unix seconds."""
    micro = {"ts": round(start * 1e6), "dur": round((end - start) * 1e6)}
    return {"name": name, "ph": "X", "pid": process, "tid": 0, **micro}
