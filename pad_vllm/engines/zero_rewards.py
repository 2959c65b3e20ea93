"""The engine of a rank whose rewards another rank computes: its share of their sum is nothing.

`resident` and `ray` run under tensor parallelism on the first rank alone: their reward model is no part of
the base that is split, and one of them a rank would have to agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pad_vllm.engines.reward_engine import GuidedRequest, StepCandidates


class ZeroRewards:
    """See engines.base.RewardEngine."""

    def on_request_joined(self, request: GuidedRequest) -> None:
        """Nothing to do."""

    def before_forward_v1(self, requests: Mapping[int, GuidedRequest]) -> None:
        """Nothing to do."""

    def before_forward_v2(
        self, requests: Sequence[GuidedRequest], fed: Callable[[], Tensor]
    ) -> None:
        """Nothing to do."""

    def rewards(self, step: StepCandidates) -> Tensor:
        """[G, K] zeros."""
        return torch.zeros(step.ids.shape, device=step.ids.device)
