"""The `resident` engine: a PersRM of its own in vLLM's worker, beside a base of any tokenizer.

In: the base's input tokens of this step, and its candidates. Out: rewards. It keeps each request's PersRM
tokens in step with the base's, and calls a scorer: a reward model in this process, or in another one for the
`ray` engine. It knows neither the KV cache nor how a reward is computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from weakref import finalize

import torch
from torch import Tensor

from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.engines.prompt_reader import LONGEST_WAIT_S, PromptReader
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
    """Scores the requests of one step."""

    def __call__(self, requests: Sequence[ScoringRequest]) -> Tensor:
        """Rewards [G, K] float32, K the most candidates of any request; NaN in rows that have no rewards."""


@dataclass
class ResidentRowState:
    """GuidedRequest.engine_state of this engine: the request's key, and its tokens for the reward model."""

    key: int
    """ScoringRequest.key: unique in this engine."""

    opened: Future[AlignedTokens]
    """Done when the prompt has been translated."""

    num_read: int
    """How many of the base's tokens are in the aligned tokens."""

    def aligned(self, tokens: Sequence[int]) -> AlignedTokens:
        """The PersRM's tokens for all of the base's `tokens`, once the prompt has been translated."""
        aligned = self.opened.result()
        if self.num_read < len(tokens):
            aligned.extend(tokens[self.num_read :])
            self.num_read = len(tokens)
        return aligned


class ResidentRewards(RewardEngine):
    """The reward engine over a scorer with a model of its own; see RewardEngine. One a served model."""

    def __init__(
        self,
        aligner: TokenAligner,
        scorer: ScoringFunction,
        failure_log: FailureLog,
        *,
        start_early: Callable[[Sequence[ScoringRequest]], None] | None = None,
        last_token_indices: Callable[[], Tensor | None] = lambda: None,
        longest_prompt_wait_s: float = LONGEST_WAIT_S["unguided"],
        require_own_weights: Callable[[], None] = lambda: None,
    ) -> None:
        """Make an engine without requests.

        Args:
            aligner: translates the base's tokens for the reward model.
            scorer: scores the requests of one step.
            failure_log: counts the rows that get no rewards.
            start_early: takes the step's requests without candidates when the base's forward starts, or right
                before, so that the reward model prefills at the same time; None for a scorer that cannot.
            last_token_indices: [rows] int64, the index of each row's last token among the [T] tokens of the
                forward that starts; None where it is not known.
            longest_prompt_wait_s: longest time that a step waits for prompts that are not translated yet.
            require_own_weights: raises RuntimeError where the scorer's model has lost its weights.
        """
        self.scorer, self.failure_log = scorer, failure_log
        self._start_early, self._last_token_indices = start_early, last_token_indices
        self._require_own_weights = require_own_weights
        self._batch: Mapping[int, GuidedRequest] = {}
        self._prompts = PromptReader(aligner, longest_prompt_wait_s)
        self._keys = itertools.count()
        self._fed_tokens: Tensor | None = None

    def on_weights_changed(self) -> None:
        """See RewardEngine. The reward model has weights of its own, which must still be there."""
        self._require_own_weights()

    def on_request_joined(self, request: GuidedRequest) -> None:
        """See RewardEngine. The prompt is translated in another thread, while the steps go on."""
        request.engine_state = self._open(request)

    def _open(self, request: GuidedRequest) -> ResidentRowState:
        prompt = request.tokens[: request.num_prompt_tokens]
        opened = self._prompts.submit(prompt, request.guidance.preference)
        state = ResidentRowState(next(self._keys), opened, len(prompt))
        # Once a request has left, its prompt delays no request that came later.
        finalize(state, opened.cancel)
        return state

    def before_forward_v1(self, requests: Mapping[int, GuidedRequest]) -> None:
        """See RewardEngine. The requests are used in `on_forward_start`."""
        self._batch = requests

    def on_forward_start(self, ids: Tensor, positions: Tensor) -> None:
        """The base's forward on ids and positions, [T] integers each, starts: have the reward model prefill
        too.
        """
        batch, self._batch = self._batch, {}
        try:
            last = self._last_token_indices() if batch else None
            if last is not None and self._start_early is not None and max(batch) < len(last):
                self._start_early(self._early_requests(batch, last, ids, positions))
        except Exception as error:  # noqa: BLE001, an error in a step would end the server
            self.failure_log.add("late start", 1, "the reward model starts late", error)

    def _early_requests(
        self, batch: Mapping[int, GuidedRequest], last: Tensor, ids: Tensor, positions: Tensor
    ) -> list[ScoringRequest]:
        """last [rows]: index of each row's last token among ids and positions [T]."""
        rows = sorted(batch)
        indices = last[rows]
        fed_tokens = torch.stack((ids[indices], positions[indices]), 1).tolist()
        requests = []
        for row, (token, position) in zip(rows, fed_tokens, strict=True):
            request = batch[row]
            # An error concerns this row alone, and `rewards` reports it.
            with suppress(Exception):
                if position <= len(request.tokens) and self._note_input(request, token, position):
                    needs_rewards = _needs_rewards(request, position)
                    requests.append(_scoring_request(request, [], must_finish=needs_rewards))
        return requests

    def before_forward_v2(
        self, requests: Sequence[GuidedRequest], read_last_tokens: Callable[[], Tensor]
    ) -> None:
        """See RewardEngine. Reads the last tokens, and so waits for the device, only with `start_early`."""
        if self._start_early is None or not requests:
            return
        early = []
        for request, (token, position) in zip(requests, read_last_tokens().tolist(), strict=True):
            with suppress(Exception):  # as in `_early_requests`
                num_tokens = len(request.tokens)
                if position <= num_tokens and self._note_input(request, token, position):
                    # Where the token is not new, the base is still reading the prompt.
                    is_new = position == num_tokens
                    early.append(_scoring_request(request, [], must_finish=is_new))
        self._start_early(early)

    def receive(self, fed_tokens: Tensor) -> None:
        """[R, 2] int64: token id and position of the rows whose logits are computed now."""
        self._fed_tokens = fed_tokens

    def discard(self) -> None:
        """`receive` raised an error: no row of this step gets rewards."""
        self._fed_tokens = None

    def rewards(self, step: StepCandidates) -> Tensor | None:
        """See RewardEngine. Waits for the device once, before the scorer is called."""
        fed_tokens, self._fed_tokens = self._fed_tokens, None
        if fed_tokens is None or len(fed_tokens) != step.num_logits_rows:
            return None
        # One transfer, [G, 2 + K]: token id, position, candidates.
        numbers = torch.cat((fed_tokens.index_select(0, step.rows), step.ids), 1).tolist()
        self._wait_for_prompts(step.requests, numbers)
        requests, scored, unsampled, num_late = [], [], [], 0
        for index, (guided, (token, position, *ids)) in enumerate(
            zip(step.requests, numbers, strict=True)
        ):
            try:
                request = self._request_for(guided, token, position, ids)
            except Exception as error:  # noqa: BLE001, it concerns this row alone
                message = "a request's text was lost: its row stays unguided"
                self.failure_log.add("text lost", 1, message, error)
                continue
            if request is not None:
                requests.append(request)
                scored.append(index)
            elif _needs_rewards(guided, position):
                num_late += 1
            else:
                unsampled.append(index)
        if num_late:
            message = "prompts are not translated yet: their rows stay unguided until they are"
            self.failure_log.add("late prompt", num_late, message)
        result = torch.full(step.ids.shape, NAN, device=step.ids.device)
        result[unsampled] = 0.0
        if requests:
            rewards = self.scorer(requests).to(step.ids.device)
            result[scored] = widen_rewards(rewards, result.shape[1])
        for index in scored:
            step.requests[index].engine_state.opened.result().reset_unchanged()
        return result

    def _wait_for_prompts(
        self, requests: Sequence[GuidedRequest], numbers: Sequence[Sequence[int]]
    ) -> None:
        """Give the prompts of the rows that are sampled now a bounded time; numbers: as in `rewards`."""
        needed = []
        for request, (token, position, *_) in zip(requests, numbers, strict=True):
            if position > len(request.tokens):
                continue  # its text is lost, which `_request_for` reports
            translated = self._note_input(request, token, position)
            if not translated and _needs_rewards(request, position):
                needed.append(request.engine_state.opened)
        self._prompts.wait_for(needed)

    def _request_for(
        self, request: GuidedRequest, token: int, position: int, ids: list[int]
    ) -> ScoringRequest | None:
        """The scoring request of a row whose last input was `token` at `position`, with candidates `ids`.

        None where the prompt has not been translated yet. Raises LookupError where tokens before `position`
        are not known.
        """
        if position > len(request.tokens):
            raise LookupError(
                f"the base was fed position {position}, and {len(request.tokens)} tokens are known"
            )
        if not self._note_input(request, token, position):
            return None
        return _scoring_request(request, ids, must_finish=_needs_rewards(request, position))

    def _note_input(self, request: GuidedRequest, token: int, position: int) -> bool:
        """Update request.tokens with what the base was fed. False while its prompt is being translated."""
        if position == len(request.tokens):
            request.tokens.append(token)
        elif position == len(request.tokens) - 1 and request.tokens[position] != token:
            # The token that the base was fed is the one in its KV cache.
            request.tokens[position], request.engine_state = token, None
        if request.engine_state is None:  # the prompt's tokens were not known before
            request.engine_state = self._open(request)
        return bool(request.engine_state.opened.done())


def _needs_rewards(request: GuidedRequest, position: int) -> bool:
    """Whether the row is sampled after `position`; otherwise the base is still reading its prompt."""
    return position == len(request.tokens) - 1


def _scoring_request(
    request: GuidedRequest, ids: list[int], *, must_finish: bool
) -> ScoringRequest:
    """ids: the base's candidates, best first. Without `must_finish` the row is only prefilled."""
    state: ResidentRowState = request.engine_state
    aligned = state.aligned(request.tokens)
    return ScoringRequest(
        key=state.key,
        tokens=aligned.tokens,
        w=request.guidance.weights,
        candidates=aligned.candidate_changes(ids[: request.guidance.top_k] if must_finish else []),
        must_finish=must_finish,
        num_unchanged=aligned.num_unchanged,
    )
