"""PADLogitsProcessor: translates the protocols of vLLM's V1 and V2 model runners into guided steps.

In: requests, batch layouts and logits from vLLM. Out: the guided rows rewritten (guided_step.py). Every entry
from vLLM catches exceptions, which would end the server and all its requests: a row that cannot be guided
keeps the base's logits, or ends as soon as it may (`on_failure` "stop"), and is counted, for the log
(engines/failure_log.py) and for its client (outcome_table.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pad_vllm import guidance
from pad_vllm.config import PADConfig
from pad_vllm.engines.reward_engine import GuidedRequest
from pad_vllm.guidance_outcome import OUTCOME_KEY
from pad_vllm.kernels import kernel_choice
from pad_vllm.params import check_argument_syntax, parse_guidance
from pad_vllm.serving.start import config_checks, eos_tokens, served_adapters, vocabulary
from pad_vllm.serving.start.reasoning_markers import find_reasoning_markers
from pad_vllm.serving.worker.accepted_limits import AcceptedLimits
from pad_vllm.serving.worker.answer_token_reader import (
    AnswerTokenReader,
    V1AnswerTokenReader,
    V2AnswerTokenReader,
)
from pad_vllm.serving.worker.batch_slots import BatchSlots, GuidedRows
from pad_vllm.serving.worker.guided_step import GuidedStep, StepTools
from pad_vllm.serving.worker.instance import get_or_create_instance
from pad_vllm.serving.worker.outcome_table import OutcomeTable
from pad_vllm.serving.worker.reasoning_rows import ReasoningRows
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
)

_LATE_START = "the reward model starts late"
_COUNT_EVERY = 1000  # steps between looks at the counter that lives on the device

_RequestTokens = tuple[list[int], int]  # token ids, and how many of them are the prompt


class PADLogitsProcessor(V1LogitsProcessor, V2LogitsProcessor):
    """Adds each request's own reward to its top-k logits.

    V1 (vllm/v1/sample/logits_processor) constructs it with (config, device, pin_memory) and announces
    requests in update_state. V2 (vllm/v1/worker/gpu/sample/logits_processor) constructs it with (config,
    request states) and announces requests in add_request, their rows in apply's ctx. Both runners make one on
    every stage of pipeline parallelism; only the last stage computes logits.
    """

    def __init__(self, vllm_config: VllmConfig, device_or_states: Any, *_pin_memory: bool) -> None:
        """Called by vLLM.

        Args:
            vllm_config: vLLM's config.
            device_or_states: V1's torch.device of the logits, or V2's LogitsProcRequestState.
            _pin_memory: V1's third argument, unused.

        Raises:
            ValueError: PAD cannot serve this config.
        """
        is_v1 = isinstance(device_or_states, torch.device)
        device = device_or_states if is_v1 else device_or_states.device
        pad = config_checks.pad_settings(vllm_config)
        self._v1_tokens = V1AnswerTokenReader(device)
        self._v2_states: Any = None if is_v1 else device_or_states
        self._v2_tokens = None if is_v1 else V2AnswerTokenReader(device_or_states)
        self._v2_unread: list[
            tuple[int, GuidedRequest]
        ] = []  # slot and request, tokens not read yet
        self._v2_last_rows: GuidedRows | None = None  # the guided rows of the previous step
        if vllm_config.speculative_config is not None:
            draft_rows.patch_rejection_sampler()
        self._tools = _step_tools(
            vllm_config,
            pad,
            device,
            token_reader=self._v2_tokens or self._v1_tokens,
            states=self._v2_states,
        )
        self._instance, self._outcome_table = self._tools.instance, self._tools.outcome_table
        self._failure_log = self._instance.failure_log
        self._limits = AcceptedLimits(served_adapters.served_limits(pad))
        self._slots = BatchSlots(device, self._on_left_batch)
        self._num_steps = 0
        self._computes_logits = parallel_ranks.computes_logits()
        # `shared` reads the base's hidden states; the other engines, which run on the first rank, need the
        # requests' token ids.
        self._reads_tokens = pad.engine != "shared" and parallel_ranks.tp_rank_and_size()[0] == 0
        if self._computes_logits:
            self._instance.register_processor(
                outcome_table=self._outcome_table,
                step_counters=self._tools.step_counters,
                accepted_limits=self._limits,
            )

    # Both runners.

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Check what needs no adapter; frontend/admission.py checks the rest. Raises ValueError."""
        check_argument_syntax(sampling_params.extra_args)

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Rewrite the guided rows of logits [rows, V] float32 in place; ctx is V2's batch layout."""
        try:
            if len(self._slots):
                self._guide(logits, ctx)
        except Exception as error:  # noqa: BLE001, it would end the server and all its requests
            self._set_outcomes_unknown(error)
        return logits

    def _guide(self, logits: Tensor, ctx: Any) -> None:
        logits_rows = _logits_rows(len(logits), ctx)
        guided = self._slots.guided_rows(logits_rows.slots)
        if guided is None:
            return
        if self._reads_tokens and ctx is not None:
            self._v2_last_rows = guided
        GuidedStep(
            self._tools, logits=logits, guided=guided, logits_rows=logits_rows, ctx=ctx
        ).run()
        self._num_steps += 1
        if self._num_steps % _COUNT_EVERY == 0:
            self._tools.step_counters.count_not_finite_rows()

    def _guided_request(self, params: SamplingParams) -> GuidedRequest | None:
        """The request if it is guided and logits are computed here; its outcome row is assigned."""
        if not self._computes_logits:
            return None
        try:
            guidance = parse_guidance(params.extra_args, self._limits.limits)
            if guidance is None:
                return None
            outcome_key = (params.extra_args or {}).get(OUTCOME_KEY)
            return GuidedRequest(
                guidance,
                outcome_row=self._outcome_table.assign_row(outcome_key),
                ignores_eos=params.ignore_eos,
            )
        except Exception as error:  # noqa: BLE001, the front end refuses these; a step must not raise
            self._failure_log.add("bad request", 1, "a request stays unguided", error)
            return None

    def _assign(self, slot: int, request: GuidedRequest | None) -> None:
        """A request enters a slot; None for an unguided one."""
        self._slots.assign(slot, request)
        if request is None:
            return
        try:
            engine = self._instance.engine
            if engine is not None:
                engine.follow_batch(self._slots.guided_requests)
                engine.on_request_assigned(request)
        except Exception as error:  # noqa: BLE001, it would end the server and all its requests
            message = "a request could not be announced: its rows may stay unguided"
            self._failure_log.add("engine failed", 1, message, error)

    def _announce_request(
        self, request: GuidedRequest, read_tokens: Callable[[], _RequestTokens]
    ) -> None:
        """Set the request's tokens and let the engine begin to read them."""
        try:
            request.tokens, request.num_prompt_tokens = read_tokens()
            engine = self._instance.engine
            if engine is not None:
                engine.on_request_joined(request)
        except Exception as error:  # noqa: BLE001, it would end the server and all its requests
            message = "a request's tokens could not be read: its rows may stay unguided"
            self._failure_log.add("text lost", 1, message, error)

    def _on_left_batch(self, request: GuidedRequest) -> None:
        self._outcome_table.on_left_batch(request.outcome_row)
        self._v1_tokens.remove_request(request)
        engine = self._instance.engine
        if engine is not None:
            engine.on_request_left(request)

    def _set_outcomes_unknown(self, error: Exception) -> None:
        """After a step that failed midway: whether its rows were guided is unknown."""
        requests = list(self._slots.guided_requests.values())
        for request in requests:
            self._outcome_table.set_unknown(request.outcome_row)
        message = "a step's guidance failed: its rows may be unguided"
        self._failure_log.add("engine failed", max(len(requests), 1), message, error)

    # V1.

    def is_argmax_invariant(self) -> bool:
        """V1: False, greedy requests need guidance too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """V1, before every forward: requests removed, added, moved, in the order that vLLM asks for."""
        try:
            if batch_update is not None:
                self._update_slots(batch_update)
        except Exception as error:  # noqa: BLE001, it would end the server and all its requests
            self._set_outcomes_unknown(error)
            self._slots.clear()  # slots that missed a move would guide one request as another
        try:
            engine = self._instance.engine
            if engine is not None:
                engine.before_forward_v1(self._slots.guided_requests)
        except Exception as error:  # noqa: BLE001, as above
            self._failure_log.add("late start", 1, _LATE_START, error)

    def _update_slots(self, batch_update: BatchUpdate) -> None:
        for slot in batch_update.removed:
            self._slots.remove(slot)
        # vLLM does not list slots that others take: whoever was there leaves first, with its instruction.
        for slot, *_ in batch_update.added:
            self._slots.remove(slot)
        for slot, params, prompt, answer in batch_update.added:
            request = self._guided_request(params)
            self._assign(slot, request)
            if request is None:
                continue
            self._v1_tokens.add_request(request, answer)
            if self._reads_tokens:
                self._announce_request(request, partial(_known_tokens, prompt or (), answer))
        for source, target, how in batch_update.moved:
            self._slots.move(source, target, swap=how == MoveDirectionality.SWAP)

    # V2.

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """V2: a request enters slot `req_idx`. Returns whether it is guided."""
        request = self._guided_request(sampling_params)
        self._assign(req_idx, request)
        if self._v2_tokens is not None:
            self._v2_tokens.add_request(req_idx, is_read=self._reads_answer(request))
        if request is not None:
            self._v2_unread.append((req_idx, request))
        return request is not None

    def apply_staged_writes(self) -> None:
        """V2, before every forward, also where a captured graph replays it.

        The texts of new requests and the last tokens of the others are on the device now: reads the
        former, and lets the engine read the latter.
        """
        unread, self._v2_unread = self._v2_unread, []
        for slot, request in unread:
            self._read_v2_request(slot, request)
        last_rows, self._v2_last_rows = self._v2_last_rows, None
        try:
            engine = self._instance.engine
            if last_rows is not None and engine is not None:
                in_batch = set(self._slots.guided_requests.values())
                remaining = [
                    i for i, request in enumerate(last_rows.requests) if request in in_batch
                ]
                engine.before_forward_v2(
                    [last_rows.requests[i] for i in remaining],
                    partial(self._read_v2_last_tokens, last_rows.slots, remaining),
                )
        except Exception as error:  # noqa: BLE001, it would end the server and all its requests
            self._failure_log.add("late start", 1, _LATE_START, error)

    def _reads_answer(self, request: GuidedRequest | None) -> bool:
        """Whether a step of the request depends on the tokens of its answer."""
        if request is None:
            return False
        return request.guidance.reads_answer or self._tools.reasoning_rows is not None

    def _read_v2_request(self, slot: int, request: GuidedRequest) -> None:
        if self._reads_tokens:
            self._announce_request(request, partial(self._read_v2_tokens, slot))
        try:
            if self._tools.reasoning_rows is not None:
                self._tools.reasoning_rows.read_prompt(slot)
            if self._v2_tokens is not None and self._reads_answer(request):
                self._v2_tokens.read_earlier_tokens(slot)
        except Exception as error:  # noqa: BLE001, it would end the server and all its requests
            message = "a request's earlier tokens could not be read: guards may miss them"
            self._failure_log.add("text lost", 1, message, error)

    def _read_v2_tokens(self, slot: int) -> _RequestTokens:
        states = self._v2_states
        length = int(states.prefill_len.np[slot])
        return states.all_token_ids.gpu[slot, :length].tolist(), int(states.prompt_len.np[slot])

    def _read_v2_last_tokens(self, slots: Tensor, indices: list[int]) -> Tensor:
        """[R, 2] int64: last token id and its position, of the texts in slots[indices]."""
        states, slots = self._v2_states, slots[indices]
        position = states.total_len.gpu.index_select(0, slots).long() - 1
        return torch.stack((states.all_token_ids.gpu[slots, position].long(), position), 1)


def _step_tools(
    config: VllmConfig,
    pad: PADConfig,
    device: torch.device,
    *,
    token_reader: AnswerTokenReader,
    states: Any,
) -> StepTools:
    """What the steps need, by PAD's settings; states: V2's, None on V1. Raises ValueError where vLLM's config
    does not have it.
    """
    instance = get_or_create_instance(config.instance_id)
    rule, num_token_columns = _rule_and_token_columns(config, pad, device)
    outcome_table = OutcomeTable(device, config.scheduler_config.max_num_seqs, pad.max_top_k)
    forced_eos_token_id = reasoning_rows = None
    if pad.on_failure == "stop":
        forced_eos_token_id = eos_tokens.required_eos_token_id(config)
    if pad.reasoning == "unguided":
        reasoning_rows = ReasoningRows(states, find_reasoning_markers(config))
    return StepTools(
        rule=rule,
        instance=instance,
        outcome_table=outcome_table,
        step_counters=StepCounters(device, instance.failure_log, outcome_table),
        token_reader=token_reader,
        num_token_columns=num_token_columns,
        device=device,
        end_tokens=tuple(eos_tokens.eos_token_ids(config)),
        forced_eos_token_id=forced_eos_token_id,
        reasoning_rows=reasoning_rows,
    )


def _rule_and_token_columns(
    config: VllmConfig, pad: PADConfig, device: torch.device
) -> tuple[ModuleType, int]:
    """`StepTools.rule` and `num_token_columns`. A process that computes no logits compiles no kernels and
    opens no tokenizer.
    """
    num_columns = config.model_config.get_vocab_size()
    if not parallel_ranks.computes_logits():
        return guidance, num_columns
    num_token_columns = vocabulary.num_token_columns(config)
    sizes = kernel_choice.StepSizes(
        num_columns,
        num_token_columns,
        config.model_config.get_hidden_size(),
        config.model_config.dtype,
        pad.max_top_k,
    )
    return kernel_choice.choose_rule(device, sizes), num_token_columns


def _logits_rows(num_rows: int, ctx: Any) -> draft_rows.LogitsRows:
    """Which slot each of the step's logits rows belongs to. V1's rows are slots."""
    if ctx is None:
        return draft_rows.LogitsRows(np.arange(num_rows), first_row=0, num_step_rows=num_rows)
    return draft_rows.logits_rows(ctx, num_rows)


def _known_tokens(prompt: Sequence[int], answer: Sequence[int]) -> _RequestTokens:
    """V1's lists as one. vLLM writes -1 for the last tokens while the host does not know them yet."""
    return [*prompt, *(token for token in answer if token >= 0)], len(prompt)
