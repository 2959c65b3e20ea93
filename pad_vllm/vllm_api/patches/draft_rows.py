"""The batch slot of each logits row while the V2 runner verifies drafts: a request has one row for each
draft, and one more.

vLLM gives processors the rows' requests on the device only. The host's count of rows is in the batch that the
rejection sampler is called with (vllm/v1/worker/gpu/spec_decode/rejection_sampler.py); this module stores
that batch while the sampler runs, so no step waits for the device. The sampler may pass processors its rows
in slices of whole requests. Knows nothing of guidance.
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

    slots: np.ndarray
    """[R] int: the batch slot of each row's request."""

    first_row: int
    """Index of the first of these rows among all of the step."""

    num_step_rows: int
    """Number of rows of the whole step."""


def patch_rejection_sampler() -> None:
    """Wrap V2's rejection sampler, so that `logits_rows` knows the batch of steps that verify drafts.
    Calling twice changes nothing. Raises IncompatibleVLLM.
    """
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

    has_fields = {"idx_mapping_np", "cu_num_logits_np"} <= set(InputBatch.__annotations__)
    arguments = list(inspect.signature(RejectionSampler.__call__).parameters)
    if not has_fields or arguments[:3] != ["self", "logits", "input_batch"]:
        raise IncompatibleVLLM(
            f"vLLM {vllm.__version__} verifies drafts in a way that pad_vllm does not know; it accepts "
            f"vLLM {ACCEPTED_IN_WORDS}. Drop --speculative-config, or install one of these."
        )
    wrap_method(RejectionSampler, "__call__", _with_batch_noted)


def _with_batch_noted(
    original: Any, sampler: Any, logits: Any, input_batch: Any, *args: Any, **kwargs: Any
) -> Any:
    before = _verified_batch.set(input_batch)
    try:
        return original(sampler, logits, input_batch, *args, **kwargs)
    finally:
        _verified_batch.reset(before)


def logits_rows(ctx: Any, count: int) -> LogitsRows:
    """The slots of the `count` logits rows that V2's context `ctx` is given for. Raises ValueError where
    the batch has another number of rows.
    """
    slots, first_row, num_step_rows, batch = ctx.idx_mapping_np, 0, count, _verified_batch.get()
    if batch is not None:
        # A slot belongs to one request, so the slice's first slot says where it begins in the batch.
        first_request = int(np.flatnonzero(batch.idx_mapping_np == slots[0])[0])
        row_ends = batch.cu_num_logits_np[first_request : first_request + len(slots) + 1]
        slots = np.repeat(slots, np.diff(row_ends))
        first_row, num_step_rows = int(row_ends[0]), int(batch.cu_num_logits_np[-1])
    if len(slots) != count:
        raise ValueError(f"{count} logits rows, and it is known of {len(slots)} whose they are")
    return LogitsRows(slots, first_row, num_step_rows)
