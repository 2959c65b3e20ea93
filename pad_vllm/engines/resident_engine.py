"""The `resident` engine: a PersRM of its own in vLLM's worker, beside any base, of any tokenizer.

In: what the base was fed this step, and its candidates. Out: rewards. It keeps each request's PersRM tokens
in step and asks a scorer, in this process; the `ray` engine asks one in another. It knows neither the KV
cache nor how a reward is computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from weakref import finalize

import torch
from torch import Tensor

from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.engines.reward_engine import (
    GuidedRequest,
    RewardEngine,
    StepCandidates,
    widen_rewards,
)
from pad_vllm.engines.reward_model.scoring_request import ScoringRequest
from pad_vllm.text.token_alignment import AlignedTokens, TokenAligner

NAN = float("nan")


class ScoringFunction(Protocol):
    """Rewards [G, K] of the asks of one step; NaN in rows that have none."""

    def __call__(self, asks: Sequence[ScoringRequest]) -> Tensor: ...


@dataclass
class ResidentRowState:
    """What the engine keeps of a request: its number, and its tokens for the reward model."""

    key: int
    opened: Future[AlignedTokens]
    read: int
    """How many of the base's tokens are in it."""

    def reading(self, tokens: Sequence[int]) -> AlignedTokens:
        """With all of the base's tokens; waits until its prompt is read."""
        reading = self.opened.result()
        if self.read < len(tokens):
            reading.extend(tokens[self.read :])
            self.read = len(tokens)
        return reading


class ResidentRewards(RewardEngine):
    """One a model. See engines.base.RewardEngine."""

    def __init__(
        self,
        reader: TokenAligner,
        scores: ScoringFunction,
        declined: FailureLog,
        *,
        start_early: Callable[[Sequence[ScoringRequest]], None] | None = None,
        last_token_indices: Callable[[], Tensor | None] = lambda: None,
    ) -> None:
        """scores: of one step's asks; early: takes the asks without candidates when the base's
        forward starts, or right before; last_tokens: index of each row's last token among those of
        that forward, None where it is not known.
        """
        self._reader, self.scorer, self.failure_log = reader, scores, declined
        self._early, self._last_tokens = start_early, last_token_indices
        self._batch: Mapping[int, GuidedRequest] = {}
        # One thread: prompts are read one by one, while the base's forwards run.
        self._prompts = ThreadPoolExecutor(1, "pad-prompts")
        self._keys = itertools.count()
        self._kept: Tensor | None = None

    def on_request_joined(self, request: GuidedRequest) -> None:
        """See engines.base.RewardEngine: its prompt is read beside the steps."""
        request.engine_state = self._open(request)

    def _open(self, request: GuidedRequest) -> ResidentRowState:
        prompt, preference = (
            request.tokens[: request.num_prompt_tokens],
            request.guidance.preference,
        )
        opened = self._prompts.submit(self._reader.start, prompt, preference)
        text = ResidentRowState(next(self._keys), opened, len(prompt))
        finalize(text, opened.cancel)  # a request that left holds up nobody who came after it
        return text

    def before_forward_v1(self, requests: Mapping[int, GuidedRequest]) -> None:
        """See engines.base.RewardEngine."""
        self._batch = requests

    def on_forward_start(self, ids: Tensor, positions: Tensor) -> None:
        """The base is fed these, [T] each: the reward model may prefill them at the same time."""
        batch, self._batch = self._batch, {}
        try:
            last = self._last_tokens() if batch else None
            if last is not None and self._early is not None and max(batch) < len(last):
                self._early(self._begun(batch, last, ids, positions))
        except Exception as error:  # noqa: BLE001, an error in a step would end the server
            self.failure_log.add("late start", 1, "the reward model starts late", error)

    def _begun(
        self, batch: Mapping[int, GuidedRequest], last: Tensor, ids: Tensor, positions: Tensor
    ) -> list[ScoringRequest]:
        rows = sorted(batch)
        places = last[rows]
        fed = torch.stack((ids[places], positions[places]), 1).tolist()
        asks = []
        for row, (token, position) in zip(rows, fed, strict=True):
            request = batch[row]
            with suppress(Exception):  # of this text alone: `rewards` says what is wrong with it
                if position <= len(request.tokens) and self._follow(request, token, position):
                    asks.append(_ask(request, [], must=_must(request, position)))
        return asks

    def before_forward_v2(
        self, requests: Sequence[GuidedRequest], read_last_tokens: Callable[[], Tensor]
    ) -> None:
        """See engines.base.RewardEngine. Waits for the device, where an engine wants its asks early."""
        if self._early is None or not requests:
            return
        asks = []
        for request, (token, position) in zip(requests, read_last_tokens().tolist(), strict=True):
            with suppress(Exception):  # as in `_begun`
                known = len(request.tokens)
                if position <= known and self._follow(request, token, position):
                    # Where nothing is new, the base is still reading the prompt.
                    asks.append(_ask(request, [], must=position == known))
        self._early(asks)

    def discard(self) -> None:
        """It could not be kept: the next step's rows have none."""
        self._kept = None

    def receive(self, fed: Tensor) -> None:
        """[R, 2] int64: token and position of the rows whose logits are computed now."""
        self._kept = fed

    def rewards(self, step: StepCandidates) -> Tensor | None:
        """See engines.base.RewardEngine."""
        kept, self._kept = self._kept, None
        if kept is None or len(kept) != step.num_logits_rows:
            return None
        # One transfer: the host waits for the device here, and nowhere else before the scorer.
        numbers = torch.cat((kept.index_select(0, step.rows), step.ids), 1).tolist()
        asks, places, idle = [], [], []
        for place, (request, row) in enumerate(zip(step.requests, numbers, strict=True)):
            try:
                ask = self._asked(request, *row)
            except Exception as error:  # noqa: BLE001, of this text alone
                said = "a request's text was lost: its row stays unguided"
                self.failure_log.add("text lost", 1, said, error)
                continue
            if ask is None:
                idle.append(place)
            else:
                asks.append(ask)
                places.append(place)
        result = torch.full(step.ids.shape, NAN, device=step.ids.device)
        result[idle] = 0.0
        if asks:
            result[places] = widen_rewards(self.scorer(asks).to(step.ids.device), result.shape[1])
        for place in places:
            step.requests[place].engine_state.opened.result().settle()
        return result

    def _asked(
        self, request: GuidedRequest, token: int, position: int, *ids: int
    ) -> ScoringRequest | None:
        """What to ask for a request that was just fed `token` at `position`; None where nothing is, as
        both models still read its prompt. Raises LookupError where tokens before it are not known.
        """
        if position > len(request.tokens):
            raise LookupError(f"fed at {position}, and {len(request.tokens)} tokens are known")
        ready = self._follow(request, token, position)
        must = _must(request, position)
        return _ask(request, [*ids], must=must) if ready or must else None

    def _follow(self, request: GuidedRequest, token: int, position: int) -> bool:
        """Note what the request was fed. False where its prompt is still being read."""
        if position == len(request.tokens):
            request.tokens.append(token)
        elif position == len(request.tokens) - 1 and request.tokens[position] != token:
            request.tokens[position], request.engine_state = (
                token,
                None,
            )  # the fed one is in the KV cache
        if request.engine_state is None:  # nobody could know before
            request.engine_state = self._open(request)
            request.engine_state.opened.result()
        return bool(request.engine_state.opened.done())


def _must(request: GuidedRequest, position: int) -> bool:
    """Whether a request just fed at `position` needs rewards; else the base is still reading its prompt."""
    return position == len(request.tokens) - 1


def _ask(request: GuidedRequest, ids: list[int], *, must: bool) -> ScoringRequest:
    """What to ask for a request that has been fed all of its tokens, or else is read ahead."""
    text: ResidentRowState = request.engine_state
    reading = text.reading(request.tokens)
    changes = reading.candidate_changes(ids[: request.guidance.top_k] if must else [])
    return ScoringRequest(
        text.key, reading.tokens, request.guidance.weights, changes, must, reading.num_unchanged
    )
