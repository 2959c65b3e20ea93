"""PADLogitsProcessor: one class for vLLM's V1 and V2 model runners; guidance.py does the maths.

In: logits and the batch layout from vLLM. Out: the guided rows rewritten. Nothing in it raises during a
step: a row that cannot be guided keeps the base's logits, or ends (`on_failure` "stop"), and is logged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pad_vllm import guidance
from pad_vllm.adapter.manifest import read_config
from pad_vllm.engines import base
from pad_vllm.params import check_syntax, parse
from pad_vllm.serving import admission
from pad_vllm.serving.slots import Selection, Slots
from pad_vllm.vllm_api.names import (
    BatchUpdate,
    MoveDirectionality,
    SamplingParams,
    V1LogitsProcessor,
    V2LogitsProcessor,
    VllmConfig,
    init_logger,
)

logger = init_logger(__name__)

_REPORT_EVERY = 1000  # steps between looks at the counter that lives on the device


class PADLogitsProcessor(V1LogitsProcessor, V2LogitsProcessor):
    """Adds each request's own reward to its top-k logits.

    V1 (vllm/v1/sample/logits_processor) constructs it with (config, device, pin_memory) and tells
    of the batch in update_state; V2 (vllm/v1/worker/gpu/sample/logits_processor) with
    (config, request states), and tells in add_request and in apply's context.
    """

    def __init__(self, vllm_config: VllmConfig, second: Any, *_pin_memory: bool) -> None:
        device = second if isinstance(second, torch.device) else second.device
        pad = admission.settings(vllm_config)
        self._limits = admission.limits(pad, read_config(pad.adapter))
        # `shared` reads the base's hidden states; the other engines need the requests' token ids.
        self._reads_tokens = pad.engine != "shared"
        self._v2_states: Any = None if isinstance(second, torch.device) else second
        self._unread: list[tuple[int, base.Request]] = []
        self._instance = vllm_config.instance_id
        # The token that ends a row without rewards; None where such a row goes on unguided.
        self._end = admission.end_token(vllm_config) if pad.on_failure == "stop" else None
        self._slots = Slots(device)
        self._declined = torch.zeros((), dtype=torch.int64, device=device)
        self._reported = 0
        self._misaligned = 0
        self._steps = 0

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Checks what needs no adapter; `admission.front_end` checks the rest. Raises ValueError."""
        check_syntax(sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        """V1: False, greedy requests need guidance too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """V1: requests removed, added, moved, in the order vLLM asks for; called before every forward."""
        if batch_update is not None:
            self._update(batch_update)
        engine = base.running(self._instance)
        if engine is not None:
            engine.batch(self._slots.guided)

    def _update(self, batch_update: BatchUpdate) -> None:
        for index in batch_update.removed:
            self._slots.drop(index)
        for index, params, prompt, answer in batch_update.added:
            request = self._request(params)
            if request is not None and self._reads_tokens:
                # vLLM marks tokens that the host does not know yet, the last ones, with -1.
                request.tokens = [*(prompt or ()), *(token for token in answer if token >= 0)]
                request.prompt = len(prompt or ())
                self._join(request)
            self._slots.put(index, request)
        for source, target, how in batch_update.moved:
            self._slots.move(source, target, swap=how == MoveDirectionality.SWAP)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """V2: a request enters slot `req_idx`. Returns whether it is guided."""
        request = self._request(sampling_params)
        self._slots.put(req_idx, request)
        if request is not None and self._reads_tokens:
            self._unread.append((req_idx, request))
        return request is not None

    def apply_staged_writes(self) -> None:
        """V2: reads the tokens of requests that entered; they are on the device now."""
        states = self._v2_states
        for index, request in self._unread:
            length = int(states.prefill_len.np[index])
            request.tokens = states.all_token_ids.gpu[index, :length].tolist()
            request.prompt = int(states.prompt_len.np[index])
            self._join(request)
        self._unread.clear()

    def _join(self, request: base.Request) -> None:
        engine = base.running(self._instance)
        if engine is not None:
            engine.join(request)

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Rewrite the guided rows of logits [rows, V] float32 in place; ctx is V2's batch layout."""
        slots = np.arange(len(logits)) if ctx is None else ctx.idx_mapping_np
        selection = self._slots.select(slots)
        if selection is not None:
            self._guide(logits, selection)
        return logits

    def _guide(self, logits: Tensor, selection: Selection) -> None:
        z, ids = guidance.candidates(logits, selection.rows, selection.k_max)
        reward = self._rewards(
            base.Step(len(logits), selection.rows, ids, selection.w, selection.requests)
        )
        if reward is None:
            self._misaligned += 1
            logger.warning_once(
                "PAD: no rewards for these logits rows; they are not guided. Batches so far: %d",
                self._misaligned,
            )
            reward = torch.full_like(z, float("nan"))
        self._declined += guidance.guide(
            logits, selection.rows, z, ids, reward, selection.beta, selection.top_k
        )
        if self._end is not None:
            guidance.end(logits, selection.rows[reward.isnan().all(1)], self._end)
        self._report()

    def _rewards(self, step: base.Step) -> Tensor | None:
        engine = base.running(self._instance)
        try:
            return None if engine is None else engine.rewards(step)
        except Exception:  # an error in a step would end the server and all its requests
            logger.exception("PAD: the reward engine failed; this step stays unguided")
            return None

    def _report(self) -> None:
        self._steps += 1
        if self._steps % _REPORT_EVERY == 0 and (count := int(self._declined)) > self._reported:
            self._reported = count
            logger.warning("PAD: %d rows had a NaN or inf reward and stayed unguided", count)

    def _request(self, params: SamplingParams) -> base.Request | None:
        try:
            asked = parse(params.extra_args, self._limits)
            return None if asked is None else base.Request(asked)
        except ValueError as error:  # the front end refuses these; a step must not raise
            logger.warning("PAD: a request stays unguided: %s", error)
            return None
