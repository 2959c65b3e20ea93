"""Reasoning that stays unguided: which texts are inside it, and which markers of vLLM are accepted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pad_vllm.answer_tokens import AnswerTokens
from pad_vllm.serving.start import reasoning_markers
from pad_vllm.serving.worker import reasoning_rows

THINK, END = 7, 8
KNOWN = reasoning_markers.ReasoningMarkers(THINK, END)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ([1, 2, 3], False),
        ([1, THINK, 3], True),
        ([THINK], True),
        ([1, THINK, 3, END], False),
        ([1, THINK, END, 4, THINK, 5], True),  # an earlier turn's, and this one's
        ([1, END, 4], False),
    ],
)
def test_a_text_is_inside_from_its_last_think_to_the_end_of_it(text, found):
    behind = [THINK, THINK]  # what a row had before, and others' longer texts
    for split in range(len(text) + 1):  # wherever the prompt ends and the answer begins
        prompt, answer = text[:split], text[split:]
        states = SimpleNamespace(
            device=torch.device("cpu"),
            max_num_reqs=3,
            prompt_len=SimpleNamespace(np=[0, len(prompt), 0]),
            all_token_ids=SimpleNamespace(
                gpu=torch.tensor([[0] * 9, ([*prompt, *behind] + [0] * 9)[:9]])
            ),
        )
        rows = reasoning_rows.ReasoningRows(states, KNOWN)
        rows.read_prompt(1)
        tokens = torch.zeros(3, 10, dtype=torch.int32)
        tokens[1] = torch.tensor(([THINK, *answer, *behind] + [0] * 9)[:10])
        slots, start = torch.tensor([1, 0]), torch.ones(2, dtype=torch.int64)
        answers = AnswerTokens(tokens, start, start + torch.tensor([len(answer), 0]), slots)
        assert rows.inside(answers, slots).tolist() == [found, False]


def config(start, end):
    known = SimpleNamespace(reasoning_start_token_ids=start, natural_reasoning_end_token_ids=end)
    return SimpleNamespace(reasoning_config=known)


def test_the_markers_are_vllms_own():
    assert reasoning_markers.find_reasoning_markers(config([THINK], [END])) == KNOWN


@pytest.mark.parametrize(
    "unknown",
    [
        SimpleNamespace(reasoning_config=None),
        config(None, None),
        config([1, 2], [END]),
        config([1], []),
    ],
)
def test_markers_that_are_no_single_tokens_are_refused_with_the_way_out(unknown):
    with pytest.raises(ValueError, match="accepted: one token each.*--reasoning-parser"):
        reasoning_markers.find_reasoning_markers(unknown)
