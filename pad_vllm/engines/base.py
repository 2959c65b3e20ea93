"""The contract of a reward engine, and the table of running ones.

An engine answers, once a step, "what is R_w of these candidates?". It does not know requests,
sampling or the rule that adds the reward to the logits.
"""

from __future__ import annotations

from typing import Protocol
from weakref import WeakValueDictionary

from torch import Tensor


class RewardEngine(Protocol):
    """Rewards for the logits rows of the current step."""

    def rewards(self, total: int, rows: Tensor, ids: Tensor, w: Tensor) -> Tensor | None:
        """R_w of candidates, in logit units.

        total: number of logits rows of this step; rows [G] int64 among them; ids [G, K] int64;
        w [G, D] float32 -> [G, K] float32, or None when the engine holds nothing for just these
        rows: the caller then leaves them unguided and counts them. Never raises. May be called
        once a step.
        """


# Weak: an engine lives as long as the model that holds it.
_running: WeakValueDictionary[str, RewardEngine] = WeakValueDictionary()


def start(instance_id: str, engine: RewardEngine) -> None:
    """Enter the engine of one vLLM instance (`VllmConfig.instance_id`) in this process."""
    _running[instance_id] = engine


def running(instance_id: str) -> RewardEngine | None:
    """The instance's engine, None until its model is loaded."""
    return _running.get(instance_id)
