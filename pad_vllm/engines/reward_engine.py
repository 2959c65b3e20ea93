"""The contract of a reward engine, and the table of running ones.

An engine computes, once a step, R_w of the guided rows' candidates. It does not know sampling or the
rule that adds the reward to the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from pad_vllm.params import Guidance


@dataclass(eq=False)
class GuidedRequest:
    """One guided request while it is in the batch; after a preemption it is a new one."""

    guidance: Guidance
    """What it asked for."""

    tokens: list[int] = field(default_factory=list)
    """The base's token ids, prompt and answer, as far as they were known when it joined; an engine
    that needs them appends what the model is fed. Empty where the engine does not need them."""

    num_prompt_tokens: int = 0
    """How many of them are the prompt."""

    outcome_row: int = 0
    """Its place in the table of serving/worker/outcome_table.py."""

    engine_state: Any = None
    """Whatever the engine keeps for this request."""


@dataclass(frozen=True)
class StepCandidates:
    """The guided rows of one step: G of them, K candidates each, D dimensions."""

    num_logits_rows: int  # logits rows of this step, guided or not
    rows: Tensor  # [G] int64 among those from `begin` on, ascending
    ids: Tensor  # [G, K] int64, the base's best candidates, best first
    w: Tensor  # [G, D] float32; dimensions behind the last of them weigh 0
    requests: Sequence[GuidedRequest]  # of the rows, in their order
    first_row: int = 0  # where the slice of the step's rows begins that these are of
    is_last_slice: bool = True  # whether it is the last slice


class RewardEngine(Protocol):
    """Rewards for the logits rows of the current step."""

    def on_request_joined(self, request: GuidedRequest) -> None:
        """A guided request joined the batch, its tokens are known; called where `Request.tokens` are given.
        An engine may begin to read them then.
        """

    def before_forward_v1(self, requests: Mapping[int, GuidedRequest]) -> None:
        """The guided requests of the step that begins, by logits row; called before the base's forward, on
        the V1 runner alone. An engine may begin its own work then.
        """

    def before_forward_v2(
        self, requests: Sequence[GuidedRequest], read_last_tokens: Callable[[], Tensor]
    ) -> None:
        """The same on the V2 runner, which does not say who is in the step: guided requests of the one before
        that are still there; fed() gives the last token of each text and its position, [G, 2] int64. Where a
        request is decoding, that is what it is fed now.
        """

    def rewards(self, step: StepCandidates) -> Tensor | None:
        """R_w of the candidates, [G, K] float32 in logit units; NaN in a row that stays unguided. None
        where the hidden states or tokens that the engine kept are not of these rows. Call once a step, or
        once a slice of it: what was kept is let go with the last one. Under tensor parallelism this rank's
        share of it: the ranks' sum is R_w.
        """


def widen_rewards(reward: Tensor, width: int) -> Tensor:
    """Rewards [G, k] as [G, width]: candidates that a row did not ask for earn 0, and NaN where the row
    has no rewards at all. A row that asked for none, k 0, has all it wants.
    """
    wide = torch.nn.functional.pad(reward, (0, width - reward.shape[1]))
    if reward.shape[1]:
        wide = wide.masked_fill(reward.isnan().all(1, keepdim=True), float("nan"))
    return wide


# Weak: the model holds its engine, and both are freed together.
_running: WeakValueDictionary[str, RewardEngine] = WeakValueDictionary()


def register_engine(instance_id: str, engine: RewardEngine) -> None:
    """Register the engine of one vLLM instance (`VllmConfig.instance_id`) in this process."""
    _running[instance_id] = engine


def running_engine(instance_id: str) -> RewardEngine | None:
    """The instance's engine, None until its model is loaded."""
    return _running.get(instance_id)
