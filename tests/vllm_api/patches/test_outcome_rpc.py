"""The field `pad` of offline outputs, on a stand-in for vLLM's engine: told or unknown, never in the way."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import ClassVar

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.v1.engine.llm_engine import LLMEngine

from pad_vllm.guidance_outcome import OUTCOME_KEY, unknown_outcome
from pad_vllm.serving.launch import offline_engine
from pad_vllm.vllm_api.patches import front_end_checks, outcome_rpc
from pad_vllm.vllm_api.patches.outcome_rpc import patch_offline_engine

GUIDED = {"pad_weights": "helpful=1"}


class Bytes:
    """A tokenizer of bytes."""

    def decode(self, ids):
        return bytes(ids).decode()


class Guiding:
    """Whatever guides a request."""

    worker_arguments: ClassVar = {"pad_adapter": "work#1"}


class Engine:
    """Ends every request in the step after it came."""

    def __init__(self, told):
        self.told, self.marks, self.waiting = told, [], []
        self.tokenizer = Bytes()

    def has_unfinished_requests(self):
        return bool(self.waiting)

    def collective_rpc(self, _method, args):
        return self.told(*args)


def add_request(self, request_id, prompt, params, priority=0):
    """As vLLM's."""
    self.marks.append((params.extra_args or {}).get(OUTCOME_KEY))
    self.waiting.append(request_id)


def step(self):
    ended, self.waiting = self.waiting, []
    said = [SimpleNamespace(index=0, token_ids=[104, 105])]
    return [SimpleNamespace(request_id=one, finished=True, outputs=said) for one in ended]


@pytest.fixture(autouse=True)
def hooked(monkeypatch):
    """vLLM's engine class, its methods replaced until the end of the test."""
    monkeypatch.setattr(LLMEngine, "add_request", add_request)
    monkeypatch.setattr(LLMEngine, "step", step)
    for _ in range(2):
        patch_offline_engine(
            lambda _engine, params, _given: Guiding() if params.extra_args else None
        )


def run(engine, *extra_args):
    """The outputs of one request for each of the arguments."""
    for number, one in enumerate(extra_args):
        LLMEngine.add_request(engine, str(number), "Hello", SamplingParams(extra_args=one))
    return LLMEngine.step(engine)


def test_a_request_that_came_with_a_lora_is_known_by_its_name():
    lora = LoRARequest("sql", 1, "/somewhere")
    assert front_end_checks._lora(("a prompt", None, 0, lora)) == "sql"
    assert front_end_checks._lora((SimpleNamespace(lora_request=lora), None)) == "sql"
    assert front_end_checks._lora(("a prompt", SimpleNamespace(lora_request=None))) is None


def test_the_worker_is_told_the_adapter_by_its_own_name_for_it():
    guided = SamplingParams(extra_args={**GUIDED, "pad_adapter": "work"})
    own, said = outcome_rpc.with_outcome_key(guided, Guiding())
    assert own.extra_args == {**GUIDED, "pad_adapter": "work#1", OUTCOME_KEY: said.outcome_key}
    assert guided.extra_args["pad_adapter"] == "work"
    assert outcome_rpc.has_outcome_key(own)
    assert not outcome_rpc.has_outcome_key(guided)
    assert not outcome_rpc.has_outcome_key(SamplingParams(extra_args={OUTCOME_KEY: "a client's"}))


def test_each_guided_output_has_its_own_outcome_and_others_have_none():
    def told(marks):
        return [
            ([{"unguided_tokens": int(mark[-1]) % 2, "stopped": False} for mark in marks], None)
        ]

    engine = Engine(told)
    outputs = run(engine, GUIDED, None, GUIDED)
    assert engine.marks[1] is None
    assert engine.marks[0] != engine.marks[2]
    said = [getattr(output, "pad", {}).get("unguided_tokens") for output in outputs]
    assert said == [mark and int(mark[-1]) % 2 for mark in engine.marks]


def test_an_explained_answer_is_told_token_by_token():
    steps = [(0, [104, 106], [0.5, 0.1]), (1, [107, 105], [0.0, 2.0])]
    told = {"unguided_tokens": 0, "stopped": False, "steps": steps}
    (output,) = run(Engine(lambda marks: [([told for _ in marks], None)]), GUIDED)
    assert output.pad["explained"] == [
        [
            {"token": "h", "reward": 0.5, "base": "h", "changed": False},
            {"token": "i", "reward": 2.0, "base": "k", "changed": True},
        ]
    ]


def test_no_more_tokens_went_unguided_than_there_are():
    told = {"unguided_tokens": 5, "stopped": False}  # rows, of drafts that were rejected too
    (output,) = run(Engine(lambda marks: [([told for _ in marks], None)]), GUIDED)
    assert output.pad == {"unguided_tokens": 2, "stopped": False}


ONE = {"unguided_tokens": 1, "stopped": False}


@pytest.mark.parametrize(
    ("told", "whole"),
    [
        (([None], [ONE]), ONE),
        (([ONE], [ONE]), {"unguided_tokens": 2, "stopped": False}),
        (([ONE], [unknown_outcome()]), unknown_outcome()),
        (([None], [None]), unknown_outcome()),
    ],
    ids=["the second has it", "both have a part", "one lost its part", "nobody has it"],
)
def test_every_data_parallel_engine_is_asked(told, whole):
    async def call(method, name, timeout, args, kwargs):
        assert (method, name, args) == ("collective_rpc", outcome_rpc.OUTCOME_METHOD, (["m"],))
        return [[(outcomes, None)] * 2 for outcomes in told]  # of two ranks each

    engine = SimpleNamespace(
        vllm_config=SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_size=2)),
        engine_core=SimpleNamespace(call_utility_all_async=call),
    )
    assert asyncio.run(outcome_rpc._fetch_outcome(engine, "m")) == whole


def lost(_marks):
    raise TimeoutError("the worker is busy")


@pytest.mark.parametrize(
    "told", [lost, lambda _marks: [None], lambda _marks: [], lambda _marks: [([], None)]]
)
def test_answers_stay_where_the_worker_says_nothing_of_them(told, caplog):
    outputs = run(Engine(told), GUIDED, GUIDED)
    assert [output.pad for output in outputs] == [unknown_outcome()] * 2


def test_requests_that_were_aborted_are_forgotten_once_none_is_left():
    engine = Engine(lambda marks: [([unknown_outcome() for _ in marks], None)])
    LLMEngine.add_request(engine, "gone", "Hello", SamplingParams(extra_args=GUIDED))
    engine.waiting.clear()
    run(engine)
    assert engine.pad_asked == {}


def test_the_methods_keep_the_names_and_arguments_of_vllms():
    assert LLMEngine.add_request.__name__ == "add_request"
    assert LLMEngine.add_request.__doc__ == "As vLLM's."
    assert LLMEngine.step.__name__ == "step"


def test_parameters_with_a_requests_arguments_are_a_copy():
    params = offline_engine.sampling_params(n=1, top_k=20, max_tokens=7)
    asked = offline_engine.with_pad_arguments(params, GUIDED)
    assert (asked.extra_args, asked.top_k, asked.max_tokens) == (GUIDED, 20, 7)
    assert params.extra_args is None
    assert offline_engine.with_pad_arguments(asked, {"pad_beta": 2.0}).extra_args == {
        **GUIDED,
        "pad_beta": 2.0,
    }
