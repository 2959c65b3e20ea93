"""Which logits rows are whose while V2 verifies drafts: a request has one for each draft, and one more.

A processor is told on the device; the host's count is in the batch that the rejection sampler is called with
(vllm/v1/worker/gpu/spec_decode/rejection_sampler.py), noted here while that runs, so that nothing waits for
the device. It may hand processors its rows in slices of whole requests. Knows nothing of guidance.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import vllm

from pad_vllm.vllm_api.patches.wrap_method import wrap_method
from pad_vllm.vllm_api.vllm_versions import ACCEPTED_IN_WORDS, IncompatibleVLLM

_verified_batch: ContextVar[Any] = ContextVar("pad_verified", default=None)


class LogitsRows(NamedTuple):
    """Logits rows of a step: all of them, or a slice."""

    slots: np.ndarray  # [R] the batch slot of each
    first_row: int  # the first one's place among the step's
    num_step_rows: int  # how many the step has


def patch_rejection_sampler() -> None:
    """From here on `rows` knows the steps that verify drafts. Raises IncompatibleVLLM."""
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

    wanted = {"idx_mapping_np", "cu_num_logits_np"} <= set(InputBatch.__annotations__)
    arguments = list(inspect.signature(RejectionSampler.__call__).parameters)
    if not wanted or arguments[:3] != ["self", "logits", "input_batch"]:
        raise IncompatibleVLLM(
            f"vLLM {vllm.__version__} verifies drafts in a way that pad_vllm does not know; it accepts "
            f"vLLM {ACCEPTED_IN_WORDS}. Drop --speculative-config, or install one of these."
        )
    wrap_method(RejectionSampler, "__call__", _with_batch_noted)


def _with_batch_noted(
    original: Any, sampler: Any, logits: Any, input_batch: Any, *a: Any, **k: Any
) -> Any:
    before = _verified_batch.set(input_batch)
    try:
        return original(sampler, logits, input_batch, *a, **k)
    finally:
        _verified_batch.reset(before)


def logits_rows(ctx: Any, count: int) -> LogitsRows:
    """Of V2's context of `count` logits rows. Raises ValueError where they cannot be told."""
    slots, begin, total, batch = ctx.idx_mapping_np, 0, count, _verified_batch.get()
    if batch is not None:
        # A slot is one request's, so that its first one says which slice this is.
        place = int(np.flatnonzero(batch.idx_mapping_np == slots[0])[0])
        ends = batch.cu_num_logits_np[place : place + len(slots) + 1]
        slots = np.repeat(slots, np.diff(ends))
        begin, total = int(ends[0]), int(batch.cu_num_logits_np[-1])
    if len(slots) != count:
        raise ValueError(f"{count} logits rows, and it is known of {len(slots)} whose they are")
    return LogitsRows(slots, begin, total)
