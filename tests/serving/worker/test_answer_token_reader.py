"""V1's answers are read from the lists that vLLM appends to, as far as the host knows their tokens."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from pad_vllm.engines.reward_engine import GuidedRequest
from pad_vllm.params import Guidance
from pad_vllm.serving.worker.answer_token_reader import V1AnswerTokenReader, V2AnswerTokenReader
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


def v2_states(prompts, texts, width=32):
    """V2's states: numbers of prompt tokens, and what was fed at the last fill."""
    tokens = torch.zeros(len(texts), width, dtype=torch.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return SimpleNamespace(
        device=torch.device("cpu"),
        max_num_reqs=len(texts),
        all_token_ids=SimpleNamespace(gpu=tokens),
        prompt_len=SimpleNamespace(np=np.array(prompts), gpu=torch.tensor(prompts).int()),
        prefill_len=SimpleNamespace(np=np.array([len(text) for text in texts])),
    )


def v2_step(reader, prompts, fed, places, slots=None):
    """Read a step whose rows are fed these tokens at these places, one row a slot or those of `slots`."""
    slots = list(range(len(prompts))) if slots is None else slots
    guided = SimpleNamespace(rows=torch.arange(len(fed)), slots=torch.tensor(slots))
    requests = np.array(sorted(set(slots)))
    last = dict(zip(slots, places, strict=True))
    ctx = SimpleNamespace(
        idx_mapping_np=requests,
        input_ids=torch.tensor(fed, dtype=torch.int32),
        pos=torch.tensor(places),
        # A captured graph pads the batch, and this array with it.
        seq_lens_upper_bound_np=np.array([*(last[slot] + 1 for slot in requests), 0, 0]),
    )
    answers = reader.read(guided, ctx)
    rows = zip(answers.row_tokens().tolist(), answers.start, answers.stop, strict=True)
    return [row[begin:end] for row, begin, end in rows]


def v2_reader(prompts, texts):
    reader = V2AnswerTokenReader(v2_states(prompts, texts))
    for slot in range(len(prompts)):
        reader.add_request(slot, is_read=True)
        reader.read_earlier_tokens(slot)
    return reader


def test_v2_a_step_adds_what_it_was_fed_and_prompts_are_not_kept():
    prompts = [3, 1]
    reader = v2_reader(prompts, [[1, 2, 3], [4]])
    assert v2_step(reader, prompts, [3, 4], [2, 0]) == [[], []]
    assert v2_step(reader, prompts, [7, 8], [3, 1]) == [[7], [8]]
    assert v2_step(reader, prompts, [9, 8], [4, 2]) == [[7, 9], [8, 8]]


def test_v2_a_request_that_returns_has_what_it_had_answered():
    prompts = [2, 1]
    reader = v2_reader(prompts, [[1, 2, 7, 8], [4]])
    assert v2_step(reader, prompts, [8, 4], [3, 0]) == [[7, 8], []]
    reader.add_request(0, is_read=True)  # another one enters the slot
    reader._states.prefill_len.np[0] = 2
    reader.read_earlier_tokens(0)
    assert v2_step(reader, prompts, [2, 5], [1, 1]) == [[], [5]]


def test_v2_drafts_stand_in_the_rows_after_them_and_rejected_ones_are_written_over():
    prompts = [2]
    reader = v2_reader(prompts, [[1, 2]])
    v2_step(reader, prompts, [2], [1])
    rows = v2_step(reader, prompts, [5, 6, 7], [2, 3, 4], slots=[0, 0, 0])
    assert rows == [[5], [5, 6], [5, 6, 7]]
    rows = v2_step(reader, prompts, [9, 8], [3, 4], slots=[0, 0])  # 6 and 7 were rejected
    assert rows == [[5, 9], [5, 9, 8]]


def test_v2_answers_have_place_however_long_they_get_and_unguided_ones_take_none():
    prompts = [1, 1]
    reader = v2_reader(prompts, [[1], [1]])
    expected = []
    for place in range(1, 700):
        expected.append(place % 251)
        rows = v2_step(reader, prompts, [place % 251, 3], [place, 1])
        assert rows == [expected, [3]]
    reader.add_request(1, is_read=False)
    width = reader._answers.shape[1]
    ctx = SimpleNamespace(
        idx_mapping_np=np.array([0, 1]),
        seq_lens_upper_bound_np=np.array([702, 20_000]),
        input_ids=torch.tensor([5]),
        pos=torch.tensor([700]),
    )
    reader.read(SimpleNamespace(rows=torch.tensor([0]), slots=torch.tensor([0])), ctx)
    assert reader._answers.shape[1] == width
    # Guided without such a guard: it stands in the step, and takes no place.
    ctx.input_ids, ctx.pos = torch.tensor([6, 9]), torch.tensor([701, 19_999])
    both = SimpleNamespace(rows=torch.tensor([0, 1]), slots=torch.tensor([0, 1]))
    answers = reader.read(both, ctx)
    assert answers.row_tokens()[0, answers.start[0] : answers.stop[0]].tolist()[-2:] == [5, 6]
    assert int(answers.stop.max()) <= answers.tokens.shape[1]
    assert reader._answers.shape[1] == width
