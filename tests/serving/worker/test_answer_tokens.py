"""V1's answers are read from the lists that vLLM keeps, as far as they are known."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from pad_vllm.engines.reward_engine import GuidedRequest
from pad_vllm.params import Guidance
from pad_vllm.serving.worker.answer_tokens import V1AnswerTokenReader
from pad_vllm.serving.worker.batch_slots import BatchSlots


def read(*live):
    """The history and a function that reads it, for one request a list."""
    history, slots = (
        V1AnswerTokenReader(torch.device("cpu")),
        BatchSlots(torch.device("cpu"), lambda _: None),
    )
    for slot, answer in enumerate(live):
        request = GuidedRequest(Guidance((1.0,), 1.0, 10, no_repeat=3))
        slots.put(slot, request)
        history.enter(request, answer)
    selection = slots.select(torch.arange(len(live)).numpy())
    return history, lambda: history.read(selection, None)


def texts(said):
    rows = zip(said.texts().tolist(), said.stop.tolist(), strict=True)
    return [row[:stop] for row, stop in rows]


def test_answers_grow_as_vllm_appends_to_them():
    one, other = [], [5, 6]
    _, look = read(one, other)
    assert texts(look()) == [[], [5, 6]]
    one.extend(range(700))
    other.append(7)
    assert texts(look()) == [list(range(700)), [5, 6, 7]]


def test_lengths_are_those_of_what_is_read():
    history, look = read([], [5, 6, -1])
    selection = SimpleNamespace(requests=list(history._answers))
    assert history.lengths(selection, None).tolist() == look().stop.tolist() == [0, 2]


def test_what_is_not_known_yet_is_read_when_it_is():
    live = [3, -1]
    _, look = read(live)
    assert texts(look()) == [[3]]
    live[1] = 4
    assert texts(look()) == [[3, 4]]


def test_requests_that_left_are_let_go():
    history, _ = read([1])
    for request in list(history._answers):
        history.leave(request)
        history.leave(request)
    assert not history._answers
