"""What clients write where vLLM would drop it, and conversations that a reward model could not read."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from pad_vllm.argument_names import documented_spelling
from pad_vllm.serving.frontend import request_fields
from pad_vllm.serving.frontend.request_fields import request_field_check, require_arguments_in_place
from pad_vllm.vllm_api.patches.server_request_check import check_server_requests
from pad_vllm.vllm_api.vllm_names import VLLMValidationError

CLASSES = (ChatCompletionRequest, CompletionRequest, ResponsesRequest)
GUIDED = {"pad_weights": "helpful=1", "other": 1}
CHAT = [{"role": "user", "content": "Hello"}]
PLAIN = {
    ChatCompletionRequest: {"messages": CHAT},
    CompletionRequest: {"prompt": "Hello"},
    ResponsesRequest: {"input": "Hello"},
}


@pytest.fixture(autouse=True)
def hooked(monkeypatch):
    """vLLM's own classes, with the check in place until the end of the test."""
    for cls in CLASSES:
        monkeypatch.setattr(cls, "pad_request_check", None, raising=False)
        for method in ("to_sampling_params", "to_beam_search_params"):
            if hasattr(cls, method):
                monkeypatch.setattr(cls, method, getattr(cls, method))
    check_server_requests(request_field_check(lambda _: False), require_arguments_in_place)
    check_server_requests(
        request_field_check(lambda asked: "reads" in asked), require_arguments_in_place
    )


def params(cls, *, beams=False, **changes):
    request = cls(**{**PLAIN[cls], **changes})
    return (request.to_beam_search_params if beams else request.to_sampling_params)(5, {})


@pytest.mark.parametrize("cls", CLASSES)
def test_a_plain_request_passes_guided_or_not(cls):
    assert params(cls).extra_args in (None, {})
    assert params(cls, vllm_xargs=GUIDED).extra_args == GUIDED
    assert params(cls, vllm_xargs={**GUIDED, "reads": 1}).extra_args["reads"] == 1


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("xargs", [None, GUIDED])
def test_an_argument_beside_vllm_xargs_is_refused_with_its_right_place(cls, xargs):
    with pytest.raises(VLLMValidationError, match=r'"vllm_xargs": {"pad_beta": 2}'):
        params(cls, vllm_xargs=xargs, pad_beta=2)


ASKED = {"pad_weights": "helpful=1"}
IGNORED = {
    "extra_body.vllm_xargs.pad_weights": {"extra_body": {"vllm_xargs": ASKED}},
    "extra_args.pad_weights": {"extra_args": ASKED},
    "sampling_params.extra_args.pad_weights": {"sampling_params": {"extra_args": ASKED}},
    "metadata.pad_weights": {"metadata": ASKED},
    "chat_template_kwargs.pad_weights": {"chat_template_kwargs": ASKED},
    "vllm_xarg.pad_weights": {"vllm_xarg": ASKED},
    "vllmXargs.Pad-Weights": {"vllmXargs": {"Pad-Weights": "helpful=1"}},
    "a.b.PADWEIGHTS": {"a": [{"b": [[{"PADWEIGHTS": "helpful=1"}]]}]},
    "Pad_weights": {"Pad_weights": "helpful=1"},
    "padweights": {"padweights": "helpful=1"},
    "pad-weights": {"pad-weights": "helpful=1"},
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("place", IGNORED)
def test_where_vllm_would_drop_it_is_refused_by_its_place_with_the_right_one(cls, place):
    with pytest.raises(
        VLLMValidationError, match=f'\'{place}\'.*xargs": {{"pad_weights": "helpful=1'
    ) as error:
        params(cls, **IGNORED[place])
    assert "would be ignored" in str(error.value)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "harmless",
    [
        {"extra_body": {}},
        {"extra_body": {"vllm_xargs": {"other": 1}}},
        {"metadata": {"team": "pad", "pad": "left"}},
        {"mm_processor_kwargs": {"pad_to_multiple_of": 8}},
        {"schema": {"properties": {"pad_weights": {"type": "string"}}}},
        {"a": {"messages": [{"pad_weights": "said"}]}},
    ],
)
def test_what_is_not_meant_for_pad_passes(cls, harmless):
    params(cls, **harmless)


def test_a_tool_and_a_schema_may_use_our_names():
    schema = {"type": "object", "properties": {"pad_weights": {"type": "string"}}}
    function = {"name": "f", "parameters": schema}
    shape = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    params(
        ChatCompletionRequest,
        tools=[{"type": "function", "function": function}],
        response_format=shape,
    )


def test_a_deep_body_is_read_to_its_end():
    body = dict(ASKED)
    for _ in range(5000):
        body = {"a": body}
    with pytest.raises(VLLMValidationError, match="would be ignored"):
        params(ChatCompletionRequest, deep=body)


def test_of_many_misplaced_arguments_a_few_are_named_and_the_rest_is_not_looked_at(monkeypatch):
    monkeypatch.setattr(request_fields, "documented_spelling", counted := Counted())
    body = {"deep": [{"pad_weights": "humor=1"} for _ in range(10_000)]}
    with pytest.raises(ValueError, match="would be ignored") as refused:
        request_fields.require_arguments_in_place(body, "vllm_xargs")
    assert len(str(refused.value)) < 1000
    assert counted.calls < 100


class Counted:
    """documented_spelling, and how often it was called."""

    calls = 0

    def __call__(self, name):
        self.calls += 1
        return documented_spelling(name)


@pytest.mark.parametrize("cls", [ChatCompletionRequest, CompletionRequest])
def test_beam_search_with_pad_arguments_is_refused_because_vllm_would_drop_them(cls):
    with pytest.raises(VLLMValidationError, match="use_beam_search together with pad_weights"):
        params(cls, beams=True, use_beam_search=True, n=2, vllm_xargs=GUIDED)


@pytest.mark.parametrize("cls", [ChatCompletionRequest, CompletionRequest])
@pytest.mark.parametrize("arguments", [None, {}, {"other": 1}])
def test_beam_search_without_pad_arguments_is_left_alone(cls, arguments):
    more = {"use_beam_search": True, "n": 2, "vllm_xargs": arguments}
    assert params(cls, beams=True, **more).beam_width == 2


TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
UNREADABLE = {
    "tools": {"tools": [TOOL]},
    "documents": {"documents": [{"text": "a page"}]},
    "chat_template": {"chat_template": "{{ messages }}"},
    "chat_template_kwargs": {"chat_template_kwargs": {"enable_thinking": False}},
    "continue_final_message": {"continue_final_message": True, "add_generation_prompt": False},
    "add_generation_prompt": {"add_generation_prompt": False},
    "reasoning_effort": {"reasoning_effort": "low"},
    r"messages\[1\].role": {"messages": [*CHAT, {"role": "developer", "content": "Be brief"}]},
    r"messages\[1\].tool_calls": {
        "messages": [*CHAT, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    },
    r"messages\[0\].content": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}],
            }
        ]
    },
}


@pytest.mark.parametrize("field", UNREADABLE)
def test_what_hides_the_turns_from_a_reward_model_that_reads_them_is_refused_by_its_field(field):
    changes = UNREADABLE[field]
    with pytest.raises(VLLMValidationError, match=f"^{field} is "):
        params(ChatCompletionRequest, vllm_xargs={**GUIDED, "reads": 1}, **changes)
    assert params(ChatCompletionRequest, vllm_xargs=GUIDED, **changes).extra_args == GUIDED
    params(ChatCompletionRequest, vllm_xargs={"reads": 1}, **changes)


def test_turns_of_text_parts_pass():
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    system = [{"role": "system", "content": "Be brief"}, *parts]
    params(ChatCompletionRequest, vllm_xargs={**GUIDED, "reads": 1}, messages=system)


def test_tools_and_other_items_of_the_responses_api_are_refused_too():
    reads = {"vllm_xargs": {**GUIDED, "reads": 1}}
    tool = {"type": "function", "name": "look", "parameters": {}, "strict": False}
    with pytest.raises(VLLMValidationError, match="^tools is "):
        params(ResponsesRequest, tools=[tool], **reads)
    output = {"type": "function_call_output", "call_id": "1", "output": "x"}
    with pytest.raises(VLLMValidationError, match=r"\[0\].role is "):
        params(ResponsesRequest, input=[output], **reads)
    params(ResponsesRequest, input=CHAT, **reads)
