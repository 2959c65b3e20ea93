"""The field `pad` of the server's responses and streams: that of the outputs that they are made of.

In: vLLM's classes of chat, completions and responses. Leans on the names of the methods that make responses
and on those of their arguments; the responses' classes allow more fields. It asks no worker (answers.py).
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
    """In this process, the server's responses and streams carry the field `pad` of the outputs that they are
    made of. Calling twice changes nothing; an API that this vLLM does not have is passed over.
    """
    chat = f"{_SERVING}.chat_completion.serving", "OpenAIServingChat"
    batch = f"{_SERVING}.chat_completion.batch_serving", "OpenAIServingChatBatch"
    completion = f"{_SERVING}.completion.serving", "OpenAIServingCompletion"
    responses = f"{_SERVING}.responses.serving", "OpenAIServingResponses"
    _wrap(*chat, "chat_completion_full_generator", _full)
    _wrap(*chat, "chat_completion_stream_generator", _stream)
    _wrap(*batch, "chat_completion_full_generator_batch", _batch)
    _wrap(*completion, "completion_stream_generator", _stream)
    _wrap(*completion, "request_output_to_completion_response", _completion)
    _wrap(*responses, "_generate_with_builtin_tools", _noting_context)
    _wrap(*responses, "responses_full_generator", _response)


def _wrap(module: str, cls: str, method: str, around: Callable[[Any, Any], Any]) -> None:
    """Replace a method by `around(method, arguments by name)`."""
    try:
        owner = getattr(import_module(module), cls)
    except (ImportError, AttributeError):
        owner = None
    if not hasattr(owner, method):
        logger.warning("PAD: this vLLM has no %s.%s; its answers have no field `pad`", cls, method)
        return
    wrap_method(owner, method, _named(around))


@cache
def _named(around: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """`around` as hooks.replace takes it: always the same for the same."""

    def by(original: Any, *args: Any, **kwargs: Any) -> Any:
        bound = _signature(original).bind(*args, **kwargs)
        return around(lambda: original(*bound.args, **bound.kwargs), bound.arguments)

    return by


_signature = cache(inspect.signature)


class _Watched:
    """An iterator of a request's outputs, alone or as (prompt, output), that keeps what their `pad` says."""

    def __init__(self, outputs: Any, prompts: int = 1) -> None:
        self._outputs, self._prompts = outputs, prompts
        self._told: dict[int, Outcome] = {}  # by prompt

    async def __aiter__(self) -> AsyncIterator[Any]:
        async with aclosing(self._outputs) as outputs:
            async for item in outputs:
                place, output = item if isinstance(item, tuple) else (0, item)
                for outcome in _outcomes([output]):
                    self._told[place] = outcome
                yield item

    @property
    def told(self) -> Outcome | None:
        """Once all prompts' answers ended; None before, and of unguided ones."""
        told = [outcome for _, outcome in sorted(self._told.items(), key=lambda one: one[0])]
        return total_outcome(told) if len(told) == self._prompts else None


async def _full(original: Callable[[], Any], arguments: dict[str, Any]) -> Any:
    watched = arguments["result_generator"] = _Watched(arguments["result_generator"])
    return _filled(await original(), watched.told)


async def _batch(original: Callable[[], Any], arguments: dict[str, Any]) -> Any:
    """Several conversations, with a generator each."""
    watched = [_Watched(outputs) for outputs in arguments["generators"]]
    arguments["generators"] = [aiter(one) for one in watched]
    return _filled(
        await original(), total_outcome([one.told for one in watched if one.told is not None])
    )


async def _stream(original: Callable[[], Any], arguments: dict[str, Any]) -> AsyncIterator[str]:
    prompts = len(arguments.get("engine_inputs", (None,)))
    watched = _Watched(arguments["result_generator"], prompts)
    arguments["result_generator"] = watched
    held: str | None = None  # what may be the last event, once the answers are there
    async with aclosing(original()) as events:
        async for event in events:
            if held is not None:
                yield _with_pad(held, watched.told) if event == _DONE else held
            held = None if watched.told is None or event == _DONE else event
            if held is None:
                yield event
    if held is not None:
        yield _with_pad(held, watched.told)


def _with_pad(event: str, outcome: Outcome | None) -> str:
    try:
        said = json.loads(event.removeprefix("data: "))
    except ValueError:
        return event
    return event if "error" in said else f"data: {json.dumps({**said, 'pad': outcome})}\n\n"


def _completion(original: Callable[[], Any], arguments: dict[str, Any]) -> Any:
    outcomes = _outcomes(arguments["final_res_batch"])
    return _filled(original(), total_outcome(outcomes))


def _noting_context(original: Callable[[], Any], arguments: dict[str, Any]) -> Any:
    """Outputs reach a responses API's context only; it notes their outcomes."""
    context = arguments["context"]
    context.pad_outcomes, append = [], context.append_output

    def append_output(output: Any) -> Any:
        context.pad_outcomes += _outcomes([output])
        return append(output)

    context.append_output = append_output
    return original()


async def _response(original: Callable[[], Any], arguments: dict[str, Any]) -> Any:
    response = await original()
    return _filled(response, total_outcome(getattr(arguments["context"], "pad_outcomes", [])))


def _outcomes(outputs: Iterable[Any]) -> list[Outcome]:
    return [output.pad for output in outputs if getattr(output, "pad", None) is not None]


def _filled(response: Any, outcome: Outcome | None) -> Any:
    if outcome is not None and not hasattr(response, "error"):
        response.pad = outcome
    return response
