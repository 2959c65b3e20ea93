"""PADLogitsProcessor: one class for vLLM's V1 and V2 model runners; guidance.py does the maths.

In: logits and the batch layout from vLLM. Out: the guided rows rewritten. Nothing in it raises during a
step: a row that cannot be guided keeps the base's logits, or ends as soon as it may (`on_failure` "stop"),
and is counted, for the log (engines/failure_log.py) and for its client (answers.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pad_vllm import guidance
from pad_vllm.engines import failure_log, reward_engine
from pad_vllm.guidance_outcome import OUTCOME_KEY
from pad_vllm.kernels import kernel_choice
from pad_vllm.params import check_argument_syntax, parse_guidance
from pad_vllm.serving.start import config_checks, reasoning_markers, served_adapters
from pad_vllm.serving.worker import outcome_table, reasoning_rows, runtime_adapter_updates
from pad_vllm.serving.worker.answer_tokens import (
    AnswerTokenReader,
    V1AnswerTokenReader,
    V2AnswerTokenReader,
)
from pad_vllm.serving.worker.batch_slots import BatchSlots, GuidedRows
from pad_vllm.serving.worker.step_counters import StepCounters
from pad_vllm.vllm_api import parallel_ranks
from pad_vllm.vllm_api.patches import draft_rows
from pad_vllm.vllm_api.vllm_names import (
    BatchUpdate,
    MoveDirectionality,
    SamplingParams,
    V1LogitsProcessor,
    V2LogitsProcessor,
    VllmConfig,
    init_logger,
)

logger = init_logger(__name__)

_LATE = "the reward model starts late"
_REPORT_EVERY = 1000  # steps between looks at the counter that lives on the device

_Known = tuple[list[int], int]  # a request's tokens, and how many of them are its prompt
_Made = TypeVar("_Made")


class _Seen(NamedTuple):
    """The candidates of a step's guided rows, before any logit is changed; [G, K] each."""

    z: Tensor
    ids: Tensor
    unpaid: Tensor | None  # those the guards keep from being paid
    spared: Tensor | None  # [G], rows that are not to be guided in this step
    share: Tensor  # this rank's, of the rewards
    seconds: float  # of the host, on that share


class PADLogitsProcessor(V1LogitsProcessor, V2LogitsProcessor):
    """Adds each request's own reward to its top-k logits.

    V1 (vllm/v1/sample/logits_processor) constructs it with (config, device, pin_memory) and tells
    of the batch in update_state; V2 (vllm/v1/worker/gpu/sample/logits_processor) with
    (config, request states), and tells in add_request and in apply's context.
    """

    def __init__(self, vllm_config: VllmConfig, second: Any, *_pin_memory: bool) -> None:
        device = second if isinstance(second, torch.device) else second.device
        pad = config_checks.pad_settings(vllm_config)
        self._accepted = runtime_adapter_updates.AcceptedLimits(served_adapters.served_limits(pad))
        # Both runners make one on every stage of pipeline parallelism; logits are made on the last one.
        self._samples = parallel_ranks.computes_logits()
        # `shared` reads the base's hidden states; the other engines, which run on the first rank, need the
        # requests' token ids.
        self._reads_tokens = pad.engine != "shared" and parallel_ranks.tp_rank_and_size()[0] == 0
        self._v2_states: Any = None if isinstance(second, torch.device) else second
        self._unread: list[tuple[int, reward_engine.GuidedRequest]] = []
        self._last: GuidedRows | None = None  # V2: the guided rows of the step before
        self._instance = vllm_config.instance_id
        # The token that ends a row without rewards; None where such a row goes on unguided.
        self._end = (
            config_checks.required_eos_token_id(vllm_config) if pad.on_failure == "stop" else None
        )
        self._rule = kernel_choice.rule_for_device(device)
        ends = config_checks.eos_token_ids(vllm_config)
        self._ends = torch.tensor(ends, dtype=torch.int64, device=device)
        self._markers = (
            reasoning_markers.find_reasoning_markers(vllm_config)
            if pad.reasoning == "unguided"
            else None
        )
        self._declined = failure_log.failure_log_of(self._instance, logger.warning)
        self._tally = StepCounters(device, self._declined, self._count_broken)
        rows = vllm_config.scheduler_config.max_num_seqs
        self._answers = outcome_table.OutcomeTable(device, rows, self._tally, pad.max_top_k)
        if self._samples:
            runtime_adapter_updates.start(self._instance, self._accepted)
            outcome_table.start(self._instance, self._answers)
        self._v1_history = V1AnswerTokenReader(device)
        self._history: AnswerTokenReader = self._v1_history
        if self._v2_states is not None:
            self._history = V2AnswerTokenReader(self._v2_states, _drafts(vllm_config))
        self._slots = BatchSlots(device, self._left)
        self._steps = 0

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Checks what needs no adapter; `config_checks.front_end` checks the rest. Raises ValueError."""
        check_argument_syntax(sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        """V1: False, greedy requests need guidance too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """V1: requests removed, added, moved, in the order vLLM asks for; called before every forward."""
        try:
            if batch_update is not None:
                self._update(batch_update)
        except Exception as error:  # noqa: BLE001, it would end the server and all its requests
            self._lose(error)
            self._slots.clear()  # a table that missed a move would guide one request as another
        try:
            engine = reward_engine.running_engine(self._instance)
            if engine is not None:
                engine.before_forward_v1(self._slots.guided_requests)
        except Exception as error:  # noqa: BLE001, as above
            self._declined.add("late start", 1, _LATE, error)

    def _update(self, batch_update: BatchUpdate) -> None:
        for index in batch_update.removed:
            self._slots.drop(index)
        for index, params, prompt, answer in batch_update.added:
            request = self._request(params)
            self._slots.put(index, request)
            if request is None:
                continue
            self._v1_history.enter(request, answer)
            if self._reads_tokens:
                self._join(request, partial(_known, prompt or (), answer))
        for source, target, how in batch_update.moved:
            self._slots.move(source, target, swap=how == MoveDirectionality.SWAP)

    def _left(self, request: reward_engine.GuidedRequest) -> None:
        self._answers.leave(request.outcome_row)
        self._v1_history.leave(request)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """V2: a request enters slot `req_idx`. Returns whether it is guided."""
        request = self._request(sampling_params)
        self._slots.put(req_idx, request)
        if request is not None and self._reads_tokens:
            self._unread.append((req_idx, request))
        return request is not None

    def apply_staged_writes(self) -> None:
        """V2: before every forward, also where a captured graph replays it. What requests that entered
        were given and what the others said is on the device now: reads the one, and lets the engine read
        the other.
        """
        unread, self._unread = self._unread, []
        for index, request in unread:
            self._join(request, partial(self._read, index))
        last, self._last = self._last, None
        try:
            engine = reward_engine.running_engine(self._instance)
            if last is not None and engine is not None:
                here = set(self._slots.guided_requests.values())
                places = [place for place, one in enumerate(last.requests) if one in here]
                requests = [last.requests[place] for place in places]
                engine.before_forward_v2(requests, partial(self._fed, last.slots, places))
        except Exception as error:  # noqa: BLE001, it would end the server and all its requests
            self._declined.add("late start", 1, _LATE, error)

    def _fed(self, slots: Tensor, places: list[int]) -> Tensor:
        """[G, 2] int64, the last token of the texts in some of the slots, and its position."""
        states, slots = self._v2_states, slots[places]
        position = states.total_len.gpu.index_select(0, slots).long() - 1
        return torch.stack((states.all_token_ids.gpu[slots, position].long(), position), 1)

    def _read(self, index: int) -> _Known:
        states = self._v2_states
        length = int(states.prefill_len.np[index])
        return states.all_token_ids.gpu[index, :length].tolist(), int(states.prompt_len.np[index])

    def _join(self, request: reward_engine.GuidedRequest, read: Callable[[], _Known]) -> None:
        try:
            request.tokens, request.num_prompt_tokens = read()
            engine = reward_engine.running_engine(self._instance)
            if engine is not None:
                engine.on_request_joined(request)
        except Exception as error:  # noqa: BLE001, it would end the server and all its requests
            said = "a request's tokens could not be read: its rows may stay unguided"
            self._declined.add("text lost", 1, said, error)

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Rewrite the guided rows of logits [rows, V] float32 in place; ctx is V2's batch layout."""
        try:
            if len(self._slots):
                self._guide(logits, _rows(len(logits), ctx), ctx)
        except Exception as error:  # noqa: BLE001, it would end the server and all its requests
            self._lose(error)
        return logits

    def _guide(self, logits: Tensor, rows: draft_rows.LogitsRows, ctx: Any) -> None:
        selection = self._slots.select(rows.slots)
        if selection is None:
            return
        if self._reads_tokens and ctx is not None:
            self._last = selection
        seen = self._tried(selection, partial(self._look, logits, selection, rows, ctx))
        # Each rank of tensor parallelism comes here, whatever failed on it: without its share the others
        # would wait. NaN in one share is NaN in the sum, so that all ranks leave the same rows unguided.
        reward = parallel_ranks.sum_over_ranks(
            _nothing(logits, selection) if seen is None else seen.share
        )
        unguided = None
        if seen is not None:
            write = partial(self._rewrite, logits, selection, ctx, seen, reward)
            unguided = self._tried(selection, write)
        if unguided is None:
            unguided = torch.ones_like(selection.rows, dtype=torch.bool)
        self._answers.count(selection.outcome_rows, unguided)
        if self._end is not None:
            ever = self._answers.ever(selection.outcome_rows)
            ended = guidance.force_end_token(logits, selection.rows, self._end, ever)
            self._answers.stop(selection.outcome_rows, ended)
        self._report()

    def _tried(self, selection: GuidedRows, part: Callable[[], _Made]) -> _Made | None:
        """A part of a step; None where it failed, which is counted."""
        try:
            return part()
        except Exception as error:  # noqa: BLE001, it would end the server and all its requests
            said = "the reward engine failed: its rows stay unguided"
            self._declined.add("engine failed", len(selection.rows), said, error)
            return None

    def _look(
        self, logits: Tensor, selection: GuidedRows, rows: draft_rows.LogitsRows, ctx: Any
    ) -> _Seen:
        """All that may fail on one rank and not on another, before the ranks' rewards are summed."""
        z, ids = self._rule.candidates(logits, selection.rows, selection.k_max)
        engine = reward_engine.running_engine(self._instance)
        of = selection.rows, ids, selection.w, selection.requests
        step = reward_engine.StepCandidates(
            rows.num_step_rows,
            *of,
            rows.first_row,
            is_last_slice=rows.first_row + len(logits) == rows.num_step_rows,
        )
        begin = time.perf_counter()
        share = None if engine is None else engine.rewards(step)
        seconds = time.perf_counter() - begin
        if share is None:
            remark = "no rewards for these logits rows: they stay unguided"
            self._declined.add("misaligned", len(z), remark)
            share = _nothing(logits, selection)
        said = None
        if selection.max_no_repeat or self._markers:
            said = self._history.read(selection, ctx)
        spared = (
            reasoning_rows.inside_reasoning(said, self._markers) if said and self._markers else None
        )
        share_of_best = selection.min_p if selection.max_min_p else None
        guarded = said if selection.max_no_repeat else None
        guards = share_of_best, self._ends, guarded, selection.no_repeat, selection.max_no_repeat
        unpaid = self._rule.guarded_candidates(z, ids, *guards)
        return _Seen(z, ids, unpaid, spared, share, seconds)

    def _rewrite(
        self, logits: Tensor, selection: GuidedRows, ctx: Any, seen: _Seen, reward: Tensor
    ) -> Tensor:
        """[G] bool: which of the guided rows stay unguided and should not."""
        z, ids, spared = seen.z, seen.ids, seen.spared
        wanted = selection.beta, selection.top_k
        rest = selection.rows, z, ids, reward, *wanted, seen.unpaid, spared
        left, changed = self._rule.guide(logits, *rest)
        try:
            self._tally.step(left, changed, seen.seconds)
            if selection.explaining:
                paid = guidance.centred_rewards(z, reward, selection.top_k)
                self._answers.note(selection, self._history.lengths(selection, ctx), ids, paid)
        except Exception as error:  # noqa: BLE001, the rows are guided all the same
            self._declined.add("not told", len(z), "a step's figures are lost", error)
        return left if spared is None else left & ~spared

    def _lose(self, error: Exception) -> None:
        """What becomes of the answers in the batch is not known any more."""
        guided = list(self._slots.guided_requests.values())
        for request in guided:
            self._answers.forget(request.outcome_row)
        said = "a step's guidance failed: its rows may be unguided"
        self._declined.add("engine failed", max(len(guided), 1), said, error)

    def _report(self) -> None:
        self._steps += 1
        if self._steps % _REPORT_EVERY == 0:
            self._count_broken()

    def _count_broken(self) -> None:
        """Waits for the device."""
        broken = max(self._answers.unguided() - self._declined.rows, 0)
        self._declined.add("not finite", broken, "rows with a NaN or inf reward stay unguided")

    def _request(self, params: SamplingParams) -> reward_engine.GuidedRequest | None:
        try:
            asked = (
                parse_guidance(params.extra_args, self._accepted.limits) if self._samples else None
            )
            if asked is None:
                return None
            ticket = self._answers.enter((params.extra_args or {}).get(OUTCOME_KEY))
            return reward_engine.GuidedRequest(asked, outcome_row=ticket)
        except Exception as error:  # noqa: BLE001, the front end refuses these; a step must not raise
            self._declined.add("bad request", 1, "a request stays unguided", error)
            return None


def _rows(count: int, ctx: Any) -> draft_rows.LogitsRows:
    """V1's rows are slots."""
    return (
        draft_rows.LogitsRows(np.arange(count), 0, count)
        if ctx is None
        else draft_rows.logits_rows(ctx, count)
    )


def _drafts(config: VllmConfig) -> int:
    """The most that V2 verifies a request and step, 0 without speculative decoding."""
    if config.speculative_config is None:
        return 0
    draft_rows.patch_rejection_sampler()
    return int(config.speculative_config.num_speculative_tokens)


def _nothing(logits: Tensor, selection: GuidedRows) -> Tensor:
    """[G, K] NaN: rewards that leave their rows unguided."""
    shape = len(selection.rows), min(selection.k_max, logits.shape[-1])
    return torch.full(shape, float("nan"), device=logits.device)


def _known(prompt: Sequence[int], answer: Sequence[int]) -> _Known:
    """vLLM marks tokens that the host does not know yet, the last ones, with -1."""
    return [*prompt, *(token for token in answer if token >= 0)], len(prompt)
