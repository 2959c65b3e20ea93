"""The contract of a reward engine, and the table of running ones.

An engine answers, once a step, "what is R_w of these candidates?". It does not know batches,
sampling or the rule that adds the reward to the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakValueDictionary

from torch import Tensor

from pad_vllm.params import Guidance


@dataclass(eq=False)
class Request:
    """One guided request while it is in the batch; after a preemption it is a new one."""

    guidance: Guidance
    """What it asked for."""

    tokens: list[int] = field(default_factory=list)
    """The base's token ids, prompt and answer, as far as they were known when it joined; an engine
    that needs them appends what the model is fed. Empty where the engine does not need them."""

    prompt: int = 0
    """How many of them are the prompt."""

    state: Any = None
    """The engine's own."""


@dataclass(frozen=True)
class Step:
    """The guided rows of one step: G of them, K candidates each, D dimensions."""

    total: int  # logits rows of this step, guided or not
    rows: Tensor  # [G] int64 among them, ascending
    ids: Tensor  # [G, K] int64, the base's best candidates, best first
    w: Tensor  # [G, D] float32
    requests: Sequence[Request]  # of the rows, in their order


class RewardEngine(Protocol):
    """Rewards for the logits rows of the current step."""

    def batch(self, requests: Mapping[int, Request]) -> None:
        """The guided requests of the step that begins, by logits row: before the base's forward, where
        the runner says so (V1). An engine may begin its own work then.
        """

    def rewards(self, step: Step) -> Tensor | None:
        """R_w of the candidates, [G, K] float32 in logit units; NaN in a row that stays unguided. None
        where the engine holds nothing for just these rows. May be called once a step.
        """


# Weak: an engine lives as long as the model that holds it.
_running: WeakValueDictionary[str, RewardEngine] = WeakValueDictionary()


def start(instance_id: str, engine: RewardEngine) -> None:
    """Enter the engine of one vLLM instance (`VllmConfig.instance_id`) in this process."""
    _running[instance_id] = engine


def running(instance_id: str) -> RewardEngine | None:
    """The instance's engine, None until its model is loaded."""
    return _running.get(instance_id)
