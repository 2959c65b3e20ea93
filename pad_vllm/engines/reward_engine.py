"""The contract of a reward engine, and the data that it is given: guided requests and a step's candidates.

An engine computes R_w of the guided rows' candidates, once in each decoding step. It knows neither sampling
nor the rule that adds the reward to the logits. Imports no vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pad_vllm.params import Guidance


@dataclass(eq=False)
class GuidedRequest:
    """One guided request while it is in the batch. A request that returns after a preemption is a new one."""

    guidance: Guidance
    """The parsed request arguments."""

    tokens: list[int] = field(default_factory=list)
    """The base's token ids, prompt and answer, as far as they were known when the request joined. An engine
    that needs them appends each token that the model is fed. Empty for engines that need no tokens."""

    num_prompt_tokens: int = 0
    """Number of leading prompt tokens in `tokens`."""

    outcome_row: int = 0
    """Index of this request's row in the device buffers of serving/worker/outcome_table.py."""

    ignores_eos: bool = False
    """Whether an end token does not end its answers (vLLM's `ignore_eos`)."""

    instruction_blocks: tuple[int, ...] = ()
    """The reserved KV blocks that its reward stream reads; engines/shared/instruction_stream.py sets them."""

    instruction_weight: float = 0.0
    """1 if its reward stream reads an instruction, NaN if it should and cannot: the row stays unguided."""

    engine_state: Any = None
    """Whatever the engine stores for this request."""


@dataclass(frozen=True)
class StepCandidates:
    """The guided rows of one step, or of one slice of it: G rows, K candidates each, D dimensions.

    vLLM's V2 rejection sampler may hand over a step's logits in slices (vllm_api/patches/draft_rows.py).
    """

    num_logits_rows: int
    """Logits rows of the whole step, guided or not."""

    rows: Tensor
    """[G] int64, ascending: the guided rows, counted from `first_row`."""

    ids: Tensor
    """[G, K] int64: token ids of the base's best candidates, best first."""

    w: Tensor
    """[G, D] float32: weights of the dimensions. The engine may have more than D: those weigh 0."""

    requests: Sequence[GuidedRequest]
    """The request of each guided row, G of them."""

    instruction_weight: Tensor | None = None
    """[G] float32, GuidedRequest.instruction_weight of each row; None where all are 0."""

    first_row: int = 0
    """Index, among the step's logits rows, of this slice's first row."""

    is_last_slice: bool = True
    """Whether no further slice of this step follows."""


class RewardEngine:
    """Base class of the engines: rewards for the logits rows of the current step.

    Only `rewards` must be implemented. The other methods say early what a step will need, and do nothing
    by default. The processor catches what they raise.
    """

    def on_weights_changed(self) -> None:
        """The base's weights are about to be loaded again. Raises RuntimeError where the engine cannot go on:
        this is no engine step.
        """

    def on_request_joined(self, request: GuidedRequest) -> None:
        """A guided request entered the batch and its `tokens` are set: an engine may begin to read them.

        Not called for the `shared` engine, which needs no tokens.
        """

    def on_request_assigned(self, request: GuidedRequest) -> None:
        """A guided request has its slot in the batch, and no step has run since."""

    def on_request_left(self, request: GuidedRequest) -> None:
        """A guided request left its slot. On V2 that is where another takes the slot."""

    def follow_batch(self, requests: Mapping[int, GuidedRequest]) -> None:
        """requests: the guided requests by batch slot, a live view."""

    def before_forward_v1(self, requests: Mapping[int, GuidedRequest]) -> None:
        """V1, before each forward of the base: an engine may start its own work for this step.

        requests: the guided requests of the step that begins, by batch slot, which on V1 is the logits row.
        """

    def before_forward_v2(
        self, requests: Sequence[GuidedRequest], read_last_tokens: Callable[[], Tensor]
    ) -> None:
        """V2, before each forward of the base: an engine may start its own work for this step.

        V2 does not say which requests are in the step that begins.

        Args:
            requests: R requests that were guided in the previous step and are still in the batch.
            read_last_tokens: returns [R, 2] int64 on the device: each request's last token id and its
                position. For a request that is decoding, that is the token it is fed now. Moving the result
                to the host waits for the device.
        """

    def rewards(self, step: StepCandidates) -> Tensor | None:
        """R_w of the step's candidates. Call once a step, or once for each slice of it.

        Under tensor parallelism this is the rank's share: the sum over the ranks is R_w.

        Args:
            step: the guided rows and their candidates.

        Returns:
            [G, K] float32 on the device of `step.ids`, in logit units; NaN in a row that must stay unguided.
            None if the hidden states or tokens that the engine stored do not belong to these rows. The
            engine releases them with the last slice.
        """
        raise NotImplementedError


class ZeroRewards(RewardEngine):
    """The engine of a rank whose rewards the first rank computes: its share of the sum is zero.

    `resident` and `ray` run their reward model on the first rank of tensor parallelism only: it is not part
    of the base that is split over the ranks, and one copy a rank would have to agree to the last bit.
    """

    def rewards(self, step: StepCandidates) -> Tensor:
        """[G, K] float32 zeros."""
        return torch.zeros(step.ids.shape, device=step.ids.device)


def widen_rewards(reward: Tensor, width: int) -> Tensor:
    """Pad rewards [G, k] to [G, width], for rows that requested fewer candidates than the step has.

    The added candidates get reward 0, or NaN in a row that has no rewards at all (all its k are NaN). With
    k = 0 no row requested any candidate, so every row is complete.
    """
    wide = torch.nn.functional.pad(reward, (0, width - reward.shape[1]))
    if reward.shape[1]:
        wide = wide.masked_fill(reward.isnan().all(1, keepdim=True), float("nan"))
    return wide
