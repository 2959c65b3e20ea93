"""The batch slot of each logits row while drafts are verified, in one piece and in vLLM's own slices."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("vllm")

from pad_vllm.vllm_api.patches import draft_rows

COUNTS = (1, 4, 3, 1, 4)  # rows of a request
SLOTS = np.array([7, 2, 9, 0, 4])
BATCH = SimpleNamespace(
    idx_mapping_np=SLOTS, cu_num_logits_np=np.array([0, *np.cumsum(COUNTS)], dtype=np.int32)
)


def rows_of(first=0, last=5):
    """The logits rows of the requests from `first` up to `last`, as found while they are verified."""
    ends = BATCH.cu_num_logits_np
    ctx = SimpleNamespace(idx_mapping_np=SLOTS[first:last])

    def verify(_sampler, _logits, _batch):
        return draft_rows.logits_rows(ctx, int(ends[last] - ends[first]))

    return draft_rows._with_batch_noted(verify, None, None, BATCH)


def test_a_request_has_a_row_for_each_draft_and_one_more():
    rows = rows_of()
    assert rows.slots.tolist() == [7, 2, 2, 2, 2, 9, 9, 9, 0, 4, 4, 4, 4]
    assert (rows.first_row, rows.num_step_rows) == (0, 13)


@pytest.mark.parametrize("limit", range(1, 15))
def test_slices_are_the_parts_of_the_whole(limit):
    rejection = pytest.importorskip("vllm.v1.worker.gpu.spec_decode.rejection_sampler")
    whole, seen = rows_of(), []
    for first, last in rejection._iter_request_chunks(BATCH.cu_num_logits_np, limit):
        rows = rows_of(first, last)
        assert (rows.first_row, rows.num_step_rows) == (len(seen), whole.num_step_rows)
        seen += rows.slots.tolist()
    assert seen == whole.slots.tolist()


def test_where_nothing_is_verified_a_request_has_one_row():
    rows = draft_rows.logits_rows(SimpleNamespace(idx_mapping_np=SLOTS), 5)
    assert rows.slots is SLOTS
    assert (rows.first_row, rows.num_step_rows) == (0, 5)


def test_more_rows_than_the_batch_has_requests_for_are_refused():
    with pytest.raises(ValueError, match="13 logits rows, and it is known of 5 whose they are"):
        draft_rows.logits_rows(SimpleNamespace(idx_mapping_np=SLOTS), 13)


def test_the_batch_is_forgotten_after_a_failed_verification_too():
    def fail(*_):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        draft_rows._with_batch_noted(fail, None, None, BATCH)
    assert draft_rows._verified_batch.get() is None


def test_vllms_rejection_sampler_is_wrapped_once():
    rejection = pytest.importorskip("vllm.v1.worker.gpu.spec_decode.rejection_sampler")
    draft_rows.patch_rejection_sampler()
    first = rejection.RejectionSampler.__call__
    draft_rows.patch_rejection_sampler()
    assert rejection.RejectionSampler.__call__ is first
    assert first.pad_wrappers == (draft_rows._with_batch_noted,)


def test_a_rejection_sampler_with_other_arguments_is_refused(monkeypatch):
    rejection = pytest.importorskip("vllm.v1.worker.gpu.spec_decode.rejection_sampler")
    monkeypatch.setattr(rejection.RejectionSampler, "__call__", lambda self, batch: None)
    with pytest.raises(draft_rows.IncompatibleVLLM, match="verifies drafts in a way.*Drop"):
        draft_rows.patch_rejection_sampler()
