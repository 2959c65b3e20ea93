"""V1's answers are read from the lists that vLLM appends to, as far as the host knows their tokens."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from pad_vllm.engines.reward_engine import GuidedRequest
from pad_vllm.params import Guidance
from pad_vllm.serving.worker.answer_token_reader import V1AnswerTokenReader
from pad_vllm.serving.worker.batch_slots import BatchSlots


def read(*live):
    """The reader and a function that reads with it, for one request a list."""
    reader = V1AnswerTokenReader(torch.device("cpu"))
    slots = BatchSlots(torch.device("cpu"), lambda _: None)
    for slot, answer in enumerate(live):
        request = GuidedRequest(Guidance((1.0,), 1.0, 10, no_repeat=3))
        slots.assign(slot, request)
        reader.add_request(request, answer)
    guided = slots.guided_rows(torch.arange(len(live)).numpy())
    return reader, lambda: reader.read(guided, None)


def texts(answers):
    rows = zip(answers.row_tokens().tolist(), answers.stop.tolist(), strict=True)
    return [row[:stop] for row, stop in rows]


def test_answers_grow_as_vllm_appends_to_them():
    one, other = [], [5, 6]
    _, look = read(one, other)
    assert texts(look()) == [[], [5, 6]]
    one.extend(range(700))
    other.append(7)
    assert texts(look()) == [list(range(700)), [5, 6, 7]]


def test_lengths_are_those_of_what_is_read():
    reader, look = read([], [5, 6, -1])
    guided = SimpleNamespace(requests=list(reader._answers))
    assert reader.num_tokens(guided, None).tolist() == look().stop.tolist() == [0, 2]


def test_a_token_that_is_not_known_yet_is_read_once_it_is():
    live = [3, -1]
    _, look = read(live)
    assert texts(look()) == [[3]]
    live[1] = 4
    assert texts(look()) == [[3, 4]]


def test_requests_that_left_are_not_stored():
    reader, _ = read([1])
    for request in list(reader._answers):
        reader.remove_request(request)
        reader.remove_request(request)
    assert not reader._answers
