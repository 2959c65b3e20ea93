"""The field `pad` of the server's responses and streams, taken from the `RequestOutput`s that they are made
of.

Wraps methods of vLLM's classes for chat, completions and responses. Uses the names of the methods that make
responses, and those of their arguments; vLLM's response classes allow more fields. Calls no worker:
outcome_rpc.py does.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from functools import cache
from importlib import import_module
from typing import Any

from pad_vllm.guidance_outcome import Outcome, total_outcome
from pad_vllm.vllm_api.patches.wrap_method import wrap_method
from pad_vllm.vllm_api.vllm_names import init_logger

logger = init_logger(__name__)

_DONE = "data: [DONE]\n\n"
_SERVING = "vllm.entrypoints.openai"


def patch_responses() -> None:
    """Wrap the server's methods that make responses and streams, so that these have the field `pad`.
    Calling twice changes nothing. An API that this vLLM does not have gets a warning.
    """
    chat = f"{_SERVING}.chat_completion.serving", "OpenAIServingChat"
    batch = f"{_SERVING}.chat_completion.batch_serving", "OpenAIServingChatBatch"
    completion = f"{_SERVING}.completion.serving", "OpenAIServingCompletion"
    responses = f"{_SERVING}.responses.serving", "OpenAIServingResponses"
    outputs, single = "result_generator", "request_output_to_completion_response"
    _wrap(*chat, "chat_completion_full_generator", outputs, _chat_response)
    _wrap(*chat, "chat_completion_stream_generator", outputs, _stream)
    _wrap(*batch, "chat_completion_full_generator_batch", "generators", _chat_batch_response)
    _wrap(*completion, "completion_stream_generator", outputs, _stream)
    _wrap(*completion, single, "final_res_batch", _completion_response)
    _wrap(*responses, "_generate_with_builtin_tools", "context", _with_watched_context)
    _wrap(*responses, "responses_full_generator", "context", _responses_response)


def _wrap(
    module: str, cls: str, method: str, argument: str, wrapper: Callable[[Any, Any], Any]
) -> None:
    """Replace a method by `wrapper(original without arguments, arguments by name)`, which reads `argument`.
    A method that this vLLM lacks, or one without that argument, stays as it is, with a warning.
    """
    try:
        owner = getattr(import_module(module), cls)
    except (ImportError, AttributeError):
        owner = None
    original = getattr(owner, method, None)
    if original is None or argument not in inspect.signature(original).parameters:
        logger.warning(
            "PAD: this vLLM has no %s.%s(%s); responses made there have no field `pad`",
            cls,
            method,
            argument,
        )
        return
    wrap_method(owner, method, _with_named_arguments(wrapper))


@cache
def _with_named_arguments(wrapper: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A wrapper as `wrap_method` takes it; cached, because that knows a wrapper by its identity."""

    def call(original: Any, *args: Any, **kwargs: Any) -> Any:
        bound = _signature(original).bind(*args, **kwargs)
        return wrapper(lambda: original(*bound.args, **bound.kwargs), bound.arguments)

    return call


_signature = cache(inspect.signature)


class _WatchedOutputs:
    """Passes on an iterator of RequestOutputs, or of (prompt number, RequestOutput), and stores their
    `pad`.
    """

    def __init__(self, outputs: Any, num_prompts: int = 1) -> None:
        self._outputs, self._num_prompts = outputs, num_prompts
        self._outcomes: dict[int, Outcome] = {}  # by prompt number

    async def __aiter__(self) -> AsyncIterator[Any]:
        async with aclosing(self._outputs) as outputs:
            async for item in outputs:
                prompt, output = item if isinstance(item, tuple) else (0, item)
                for outcome in _outcomes([output]):
                    self._outcomes[prompt] = outcome
                yield item

    @property
    def outcome(self) -> Outcome | None:
        """All prompts' outcomes as one. None until the last answer ended, and for unguided requests."""
        if len(self._outcomes) != self._num_prompts:
            return None
        return total_outcome([self._outcomes[prompt] for prompt in sorted(self._outcomes)])


async def _chat_response(original: Callable[[], Any], arguments: dict[str, Any]) -> Any:
    watched = arguments["result_generator"] = _WatchedOutputs(arguments["result_generator"])
    return _with_field(await original(), watched.outcome)


async def _chat_batch_response(original: Callable[[], Any], arguments: dict[str, Any]) -> Any:
    """Several conversations, one generator each."""
    watched = [_WatchedOutputs(outputs) for outputs in arguments["generators"]]
    arguments["generators"] = [aiter(outputs) for outputs in watched]
    response = await original()
    outcomes = [outputs.outcome for outputs in watched]
    return _with_field(response, total_outcome([one for one in outcomes if one is not None]))


async def _stream(original: Callable[[], Any], arguments: dict[str, Any]) -> AsyncIterator[str]:
    num_prompts = len(arguments.get("engine_inputs", (None,)))
    watched = _WatchedOutputs(arguments["result_generator"], num_prompts)
    arguments["result_generator"] = watched
    held: str | None = None  # once all answers ended: an event that may be the last one
    async with aclosing(original()) as events:
        async for event in events:
            if held is not None:
                yield _event_with_field(held, watched.outcome) if event == _DONE else held
            held = None if watched.outcome is None or event == _DONE else event
            if held is None:
                yield event
    if held is not None:
        yield _event_with_field(held, watched.outcome)


def _event_with_field(event: str, outcome: Outcome | None) -> str:
    try:
        content = json.loads(event.removeprefix("data: "))
    except ValueError:
        return event
    if "error" in content:
        return event
    return f"data: {json.dumps({**content, 'pad': outcome})}\n\n"


def _completion_response(original: Callable[[], Any], arguments: dict[str, Any]) -> Any:
    outcomes = _outcomes(arguments["final_res_batch"])
    return _with_field(original(), total_outcome(outcomes))


def _with_watched_context(original: Callable[[], Any], arguments: dict[str, Any]) -> Any:
    """The responses API keeps outputs in a context only; store their outcomes there."""
    context = arguments["context"]
    context.pad_finished_outcomes, append = [], context.append_output

    def append_output(output: Any) -> Any:
        context.pad_finished_outcomes += _outcomes([output])
        return append(output)

    context.append_output = append_output
    return original()


async def _responses_response(original: Callable[[], Any], arguments: dict[str, Any]) -> Any:
    response = await original()
    outcomes = getattr(arguments["context"], "pad_finished_outcomes", [])
    return _with_field(response, total_outcome(outcomes))


def _outcomes(outputs: Iterable[Any]) -> list[Outcome]:
    return [output.pad for output in outputs if getattr(output, "pad", None) is not None]


def _with_field(response: Any, outcome: Outcome | None) -> Any:
    if outcome is not None and not hasattr(response, "error"):
        response.pad = outcome
    return response
