"""The field `pad` of responses and streams: at their end, once, and never in the way of an event."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

from pad_vllm.vllm_api.patches import response_fields
from pad_vllm.vllm_api.patches.response_fields import patch_responses

DONE = "data: [DONE]\n\n"
WRAPPED = {
    OpenAIServingChat: ("chat_completion_full_generator", "chat_completion_stream_generator"),
    OpenAIServingChatBatch: ("chat_completion_full_generator_batch",),
    OpenAIServingCompletion: (
        "completion_stream_generator",
        "request_output_to_completion_response",
    ),
    OpenAIServingResponses: ("_generate_with_builtin_tools", "responses_full_generator"),
}


def outcome(unguided):
    return {"guided_tokens": 3, "unguided_tokens": unguided, "stopped": False}


@pytest.fixture(autouse=True)
def originals(monkeypatch):
    """vLLM's methods come back after the test."""
    for cls, methods in WRAPPED.items():
        for method in methods:
            monkeypatch.setattr(cls, method, getattr(cls, method))


async def outputs(*unguided, closed=None):
    """An engine's outputs with these counts of unguided tokens, None without `pad`; closed: notes the end."""
    try:
        for number in unguided:
            yield SimpleNamespace(pad=None if number is None else outcome(number))
    finally:
        if closed is not None:
            closed.append(True)


def event(kind, **more):
    return f"data: {json.dumps({'kind': kind, **more})}\n\n"


def stream(monkeypatch, events, *unguided):
    """What a client reads, where vLLM's generator ends with these events after all outputs."""

    async def original(self, request, result_generator):
        async for _ in result_generator:
            yield event("delta")
        for one in events:
            yield one

    monkeypatch.setattr(OpenAIServingChat, "chat_completion_stream_generator", original)
    patch_responses()

    async def read():
        answer = OpenAIServingChat.chat_completion_stream_generator(None, None, outputs(*unguided))
        return [one async for one in answer]

    return asyncio.run(read())


def test_the_last_event_before_the_end_has_the_outcome(monkeypatch):
    usage = event("usage")
    assert stream(monkeypatch, [usage, DONE], None, 3) == [
        event("delta"),
        event("delta"),
        event("usage", pad=outcome(3)),
        DONE,
    ]
    assert stream(monkeypatch, [DONE], None, 3) == [
        event("delta"),
        event("delta", pad=outcome(3)),
        DONE,
    ]


def test_an_unguided_stream_is_as_it_was(monkeypatch):
    assert stream(monkeypatch, [event("usage"), DONE], None, None) == [
        event("delta"),
        event("delta"),
        event("usage"),
        DONE,
    ]


def test_a_stream_without_a_last_event_loses_none(monkeypatch):
    assert stream(monkeypatch, [], None, 3) == [event("delta"), event("delta", pad=outcome(3))]


def test_an_error_is_no_answer_and_has_no_outcome(monkeypatch):
    error = event("error", error={"message": "out of memory"})
    assert stream(monkeypatch, [error, DONE], None, 3)[-2:] == [error, DONE]


def batch(monkeypatch, *generators, error=False):
    """The response of vLLM's endpoint for several conversations at once."""

    async def original(self, request, generators):
        for generator in generators:
            await anext(generator)
            await generator.aclose()
        return SimpleNamespace(**({"error": "too long"} if error else {}))

    name = "chat_completion_full_generator_batch"
    monkeypatch.setattr(OpenAIServingChatBatch, name, original)
    patch_responses()
    return asyncio.run(getattr(OpenAIServingChatBatch, name)(None, None, list(generators)))


def test_several_conversations_at_once_have_one_outcome(monkeypatch):
    closed = []
    answer = batch(monkeypatch, outputs(2), outputs(3, None, closed=closed))
    assert answer.pad == {**outcome(5), "guided_tokens": 6}
    assert closed == [True]  # a client that leaves ends its answers at once
    assert not hasattr(batch(monkeypatch, outputs(None)), "pad")
    assert not hasattr(batch(monkeypatch, outputs(1), error=True), "pad")


def test_prompts_of_a_stream_are_explained_in_their_order_whichever_ends_first(monkeypatch):
    async def both():
        for prompt in (1, 0):
            explained = [[{"token": str(prompt)}]]
            yield prompt, SimpleNamespace(pad={**outcome(0), "explained": explained})

    async def original(self, request, engine_inputs, result_generator):
        async for _ in result_generator:
            yield event("delta")
        yield DONE

    name = "completion_stream_generator"
    monkeypatch.setattr(OpenAIServingCompletion, name, original)
    patch_responses()

    async def read():
        answer = getattr(OpenAIServingCompletion, name)(None, None, ["One", "Two"], both())
        return [one async for one in answer]

    *_, last, _ = asyncio.run(read())
    (first,), (second,) = json.loads(last.removeprefix("data: "))["pad"]["explained"]
    assert (first["token"], second["token"]) == ("0", "1")


def test_a_method_whose_argument_has_another_name_stays_as_it_is(monkeypatch):
    class Chat:
        async def chat_completion_full_generator(self, request, outputs):
            return request, outputs

    before = Chat.chat_completion_full_generator
    module = SimpleNamespace(OpenAIServingChat=Chat)
    monkeypatch.setattr(response_fields, "import_module", lambda _: module)
    said = []
    monkeypatch.setattr(response_fields.logger, "warning", lambda form, *a: said.append(form % a))
    patch_responses()
    assert Chat.chat_completion_full_generator is before
    missing = "no OpenAIServingChat.chat_completion_full_generator(result_generator)"
    assert any(missing in warning for warning in said)
