"""Two answers a prompt, plain and instructed; drawn once, and the missing ones where a draw was cut."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import tiny

from pad_vllm.text.conversation import Conversation
from pad_vllm.training.distillation.instructed_answers import InstructedBuild
from pad_vllm.training.sampling.sample_responses import sample_responses
from pad_vllm.training.sampling.vllm_sampler import SamplingOptions

SENTENCES = ("be warm", "be brief")


class Engine:
    """Answers with the prompt that it gets."""

    def __init__(self, sampling):
        self.sampling, self.asked = sampling, []

    def get_tokenizer(self):
        return tiny.tokenizer()

    def chat(self, messages, sampling_params, *, use_tqdm, chat_template):
        self.asked.append([one[-1]["content"] for one in messages])
        return [
            SimpleNamespace(
                outputs=[SimpleNamespace(text=f"to {text}", token_ids=[5, 6])] * sampling_params.n
            )
            for text in self.asked[-1]
        ]


@pytest.fixture
def engines():
    return []


@pytest.fixture
def build(engines):
    def inner(base, sampling):
        engines.append(Engine(sampling))
        return engines[-1], SimpleNamespace(n=sampling.n)

    return InstructedBuild(SENTENCES, inner)


def keys(count):
    return [Conversation.model_validate(f"question {n}") for n in range(count)]


def test_each_prompt_is_answered_plain_and_with_one_of_the_instructions(build, engines, tmp_path):
    out = tmp_path / "answers.jsonl"
    assert sample_responses("base", keys(12), out, SamplingOptions(n=2), build=build).sampled == 12
    instructed = []
    for line in map(json.loads, out.read_text().splitlines()):
        plain, other = (one["text"] for one in line["responses"])
        assert plain == f"to {line['prompt']}"
        assert other.startswith(f"{plain}\n\n")
        instructed.append(other.removeprefix(f"{plain}\n\n"))
    assert set(instructed) == set(SENTENCES)
    assert engines[0].sampling.n == 1


def test_there_is_room_for_the_instruction_beside_the_longest_prompt(build, engines, tmp_path):
    sampling = SamplingOptions(n=2, max_tokens=8, max_model_len=40)
    sample_responses("base", keys(1), tmp_path / "answers.jsonl", sampling, build=build)
    assert engines[0].sampling.max_model_len >= 40 + max(map(len, SENTENCES))


def test_a_resumed_draw_takes_the_same_instructions(build, engines, tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    sample_responses("base", keys(6), whole, SamplingOptions(n=2), build=build)
    sample_responses("base", keys(3), cut, SamplingOptions(n=2), build=build)
    sample_responses("base", keys(6), cut, SamplingOptions(n=2), build=build)
    assert cut.read_text() == whole.read_text()
    assert [len(asked) for engine in engines for asked in engine.asked] == [12, 6, 6]
