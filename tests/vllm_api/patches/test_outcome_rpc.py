"""The field `pad` of offline outputs, on a stand-in for an engine: reported or unknown, never an error."""

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


class StrictByteTokenizer:
    """Decodes bytes, and raises where they are no text."""

    def decode(self, ids):
        return bytes(ids).decode()


class FixedGuidance:
    """What guides a request."""

    worker_arguments: ClassVar = {"pad_adapter": "work#1"}


class OneStepEngine:
    """Ends every request in the step after it came."""

    def __init__(self, report):
        self.report, self.keys, self.waiting = report, [], []
        self.tokenizer = StrictByteTokenizer()

    def has_unfinished_requests(self):
        return bool(self.waiting)

    def collective_rpc(self, _method, args):
        return self.report(*args)


def add_request(self, request_id, prompt, params, priority=0):
    """As vLLM's."""
    self.keys.append((params.extra_args or {}).get(OUTCOME_KEY))
    self.waiting.append(request_id)


def step(self):
    ended, self.waiting = self.waiting, []
    answers = [SimpleNamespace(index=0, token_ids=[104, 105])]
    return [SimpleNamespace(request_id=one, finished=True, outputs=answers) for one in ended]


@pytest.fixture(autouse=True)
def wrapped(monkeypatch):
    """vLLM's engine class, its methods replaced until the end of the test."""
    monkeypatch.setattr(LLMEngine, "add_request", add_request)
    monkeypatch.setattr(LLMEngine, "step", step)
    for _ in range(2):
        patch_offline_engine(
            lambda _engine, params, _given: FixedGuidance() if params.extra_args else None
        )


def rows(guided, unguided):
    """A worker's outcome."""
    return {"guided_tokens": guided, "unguided_tokens": unguided, "stopped": False}


def run(engine, *extra_args):
    """The outputs of one request for each of the arguments."""
    for number, one in enumerate(extra_args):
        LLMEngine.add_request(engine, str(number), "Hello", SamplingParams(extra_args=one))
    return LLMEngine.step(engine)


def test_the_lora_that_a_request_came_with_is_found_among_its_arguments():
    lora = LoRARequest("sql", 1, "/somewhere")
    assert front_end_checks._lora(("a prompt", None, 0, lora)) is lora
    assert front_end_checks._lora((SimpleNamespace(lora_request=lora), None)) is lora
    assert front_end_checks._lora(("a prompt", SimpleNamespace(lora_request=None))) is None


def test_the_worker_reads_its_own_name_for_the_adapter():
    guided = SamplingParams(extra_args={**GUIDED, "pad_adapter": "work"})
    own, request = outcome_rpc.with_outcome_key(guided, FixedGuidance())
    assert own.extra_args == {**GUIDED, "pad_adapter": "work#1", OUTCOME_KEY: request.outcome_key}
    assert guided.extra_args["pad_adapter"] == "work"
    assert outcome_rpc.has_outcome_key(own)
    assert not outcome_rpc.has_outcome_key(guided)
    assert not outcome_rpc.has_outcome_key(SamplingParams(extra_args={OUTCOME_KEY: "a client's"}))


def test_each_guided_output_has_its_own_outcome_and_others_have_none():
    def report(keys):
        return [([rows(2 - int(key[-1]) % 2, int(key[-1]) % 2) for key in keys], None)]

    engine = OneStepEngine(report)
    outputs = run(engine, GUIDED, None, GUIDED)
    assert engine.keys[1] is None
    assert engine.keys[0] != engine.keys[2]
    counts = [getattr(output, "pad", {}).get("unguided_tokens") for output in outputs]
    assert counts == [key and int(key[-1]) % 2 for key in engine.keys]


def test_an_explained_answer_has_an_entry_for_each_token():
    steps = [(0, [104, 106], [0.5, 0.1]), (1, [107, 105], [0.0, 2.0])]
    reported = {**rows(2, 0), "steps": steps}
    (output,) = run(OneStepEngine(lambda keys: [([reported for _ in keys], None)]), GUIDED)
    assert output.pad["explained"] == [
        [
            {"token": "h", "reward": 0.5, "base": "h", "changed": False},
            {"token": "i", "reward": 2.0, "base": "k", "changed": True},
        ]
    ]


def test_no_more_tokens_went_unguided_than_there_are():
    reported = rows(3, 5)  # of drafts that were rejected too
    (output,) = run(OneStepEngine(lambda keys: [([reported for _ in keys], None)]), GUIDED)
    assert output.pad == rows(0, 2)


def test_an_engine_that_never_guided_reports_so():
    (output,) = run(OneStepEngine(lambda keys: [([rows(0, 0) for _ in keys], None)]), GUIDED)
    assert output.pad == rows(0, 2)


ONE = rows(1, 1)


@pytest.mark.parametrize(
    ("reported", "whole"),
    [
        (([None], [ONE]), ONE),
        (([ONE], [ONE]), rows(2, 2)),
        (([ONE], [unknown_outcome()]), unknown_outcome()),
        (([None], [None]), unknown_outcome()),
    ],
    ids=["the second has it", "both have a part", "one lost its part", "neither has it"],
)
def test_every_data_parallel_engine_is_asked(reported, whole):
    async def call(method, name, timeout, args, kwargs):
        assert (method, name, args) == ("collective_rpc", outcome_rpc.OUTCOME_METHOD, (["m"],))
        return [[(outcomes, None)] * 2 for outcomes in reported]  # of two ranks each

    engine = SimpleNamespace(
        vllm_config=SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_size=2)),
        engine_core=SimpleNamespace(call_utility_all_async=call),
    )
    assert asyncio.run(outcome_rpc._fetcher(engine).fetch("m")) == whole


def times_out(_keys):
    raise TimeoutError("the worker is busy")


@pytest.mark.parametrize(
    "report", [times_out, lambda _keys: [None], lambda _keys: [], lambda _keys: [([], None)]]
)
def test_answers_stay_where_the_worker_reports_nothing(report, caplog):
    outputs = run(OneStepEngine(report), GUIDED, GUIDED)
    assert [output.pad for output in outputs] == [unknown_outcome()] * 2


def test_requests_that_were_aborted_are_forgotten_once_none_is_left():
    engine = OneStepEngine(lambda keys: [([unknown_outcome() for _ in keys], None)])
    LLMEngine.add_request(engine, "gone", "Hello", SamplingParams(extra_args=GUIDED))
    engine.waiting.clear()
    run(engine)
    assert engine.pad_in_flight == {}


def test_the_methods_keep_the_names_and_arguments_of_vllms():
    assert LLMEngine.add_request.__name__ == "add_request"
    assert LLMEngine.add_request.__doc__ == "As vLLM's."
    assert LLMEngine.step.__name__ == "step"


def test_parameters_with_a_requests_arguments_are_a_copy():
    params = offline_engine.sampling_params(n=1, top_k=20, max_tokens=7)
    guided = offline_engine.with_pad_arguments(params, GUIDED)
    assert (guided.extra_args, guided.top_k, guided.max_tokens) == (GUIDED, 20, 7)
    assert params.extra_args is None
    assert offline_engine.with_pad_arguments(guided, {"pad_beta": 2.0}).extra_args == {
        **GUIDED,
        "pad_beta": 2.0,
    }
