"""Slots: whatever enters, leaves and moves, the selection is what a plain dict would say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_vllm.engines.reward_engine import GuidedRequest
from pad_vllm.params import Guidance
from pad_vllm.serving.worker.batch_slots import BatchSlots

ONE = GuidedRequest(Guidance((1.0,), 1.0, 5))
CPU = torch.device("cpu")
N = 6
guidances = st.builds(
    Guidance,
    weights=st.tuples(st.sampled_from([-1.0, 0.0, 0.5]), st.sampled_from([1.0, 2.0])),
    beta=st.sampled_from([-2.0, 1.0, 3.0]),
    top_k=st.integers(1, 40),
)
requests = st.none() | guidances.map(GuidedRequest)
slot = st.integers(0, N - 1)
events = st.one_of(
    st.tuples(st.just("assign"), slot, requests),
    st.tuples(st.just("remove"), slot),
    st.tuples(st.just("move"), slot, slot, st.booleans()),
)
# A request has several rows where it has drafts.
layouts = st.permutations(range(N)).flatmap(
    lambda order: st.lists(st.integers(1, 3), max_size=N).map(
        lambda rows: [slot for slot, count in zip(order, rows, strict=False) for _ in range(count)]
    )
)


def read(selection):
    """row -> request, whose guidance is what the tensors say."""
    if selection is None:
        return {}
    assert selection.max_top_k == selection.top_k.max()
    columns = (selection.rows, selection.w, selection.beta, selection.top_k)
    rows = zip(*(column.tolist() for column in columns), selection.requests, strict=True)
    found = {}
    for row, w, beta, top_k, request in rows:
        assert request.guidance == Guidance(tuple(w), beta, top_k)
        found[row] = request
    return found


def happen(model, event):
    kind, *rest = event
    if kind == "assign":
        model[rest[0]] = rest[1]
    elif kind == "remove":
        model[rest[0]] = None
    else:
        source, target, swap = rest
        moved, other = model.get(source), model.get(target)
        model[source] = other if swap else None
        model[target] = moved


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(st.one_of(events), layouts), max_size=25))
def test_any_story_gives_what_a_dict_gives(story):
    entered, left = Counter(), Counter()
    slots, model = BatchSlots(CPU, lambda request: left.update([id(request)])), {}
    for event, layout in story:
        kind, *rest = event
        if kind == "assign" and rest[1] is not None:
            entered[id(rest[1])] += 1
        if kind == "move":
            slots.move(rest[0], rest[1], swap=rest[2])
        else:
            getattr(slots, kind)(*rest)
        happen(model, event)
        expected = {
            row: model[number] for row, number in enumerate(layout) if model.get(number) is not None
        }
        for _ in range(2):  # the second answer comes from the cache
            assert read(slots.guided_rows(np.array(layout, dtype=np.int64))) == expected
        there = [id(one) for one in model.values() if one is not None]
        assert len(slots) == len(there)
        assert entered == left + Counter(there)


def test_the_tensors_are_made_once_for_steps_alike():
    slots = BatchSlots(CPU, lambda request: None)
    slots.assign(1, ONE)
    first = slots.guided_rows(np.arange(3))
    assert slots.guided_rows(np.arange(3)) is first
    assert slots.guided_rows(np.array([1, 0])) is not first


def test_slices_of_steps_alike_find_their_tensors_again():
    slots = BatchSlots(CPU, lambda request: None)
    slots.assign(1, ONE)
    slices = [np.array([1] * count) for count in range(1, 9)]
    first = [slots.guided_rows(one) for one in slices]
    assert all(slots.guided_rows(one) is known for one, known in zip(slices, first, strict=True))
    for count in range(9, 30):
        slots.guided_rows(np.array([1] * count))
    assert len(slots._rows_by_layout) <= 8


def test_a_reused_slot_forgets_its_last_request():
    slots = BatchSlots(CPU, lambda request: None)
    slots.assign(0, ONE)
    slots.guided_rows(np.arange(1))
    slots.assign(0, None)
    assert slots.guided_rows(np.arange(1)) is None
    assert len(slots) == 0


def test_a_move_onto_itself_changes_nothing():
    slots = BatchSlots(CPU, lambda request: None)
    slots.assign(0, ONE)
    for swap in (False, True):
        slots.move(0, 0, swap=swap)
        assert read(slots.guided_rows(np.arange(1))) == {0: ONE}


def test_cleared_of_all_its_requests_each_of_them_leaves():
    left = []
    slots = BatchSlots(CPU, left.append)
    slots.assign(0, ONE)
    slots.clear()
    assert (left, slots.guided_rows(np.arange(2))) == ([ONE], None)


def test_rows_and_types_are_what_the_rule_wants():
    slots = BatchSlots(CPU, lambda request: None)
    for number in (4, 2):
        slots.assign(number, GuidedRequest(Guidance((1.0, 2.0), 1.0, number)))
    selection = slots.guided_rows(np.array([4, 0, 2], dtype=np.int32))
    assert selection.outcome_rows.dtype == torch.int64
    assert selection.rows.tolist() == [0, 2]
    assert selection.rows.dtype == selection.top_k.dtype == torch.int64
    assert selection.w.dtype == selection.beta.dtype == torch.float32
    assert selection.max_top_k == 4


def test_a_request_that_knows_of_fewer_dimensions_weighs_the_others_with_zero():
    slots = BatchSlots(CPU, lambda _: None)
    slots.assign(0, ONE)
    slots.assign(1, GuidedRequest(Guidance((0.0, 0.0, 2.0), 1.0, 5)))
    assert slots.guided_rows(np.arange(2)).w.tolist() == [[1, 0, 0], [0, 0, 2]]
