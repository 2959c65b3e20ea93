"""Checks the server's requests as clients wrote them, before vLLM makes sampling parameters of them.

Wraps the methods `to_sampling_params` and `to_beam_search_params` of vLLM's request classes. Of other routes,
whose classes ignore fields that they do not know, the JSON body itself is checked, where the route's handler
is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any, Protocol

from pad_vllm.vllm_api.patches.wrap_method import wrap_method
from pad_vllm.vllm_api.prometheus_metrics import pad_metrics
from pad_vllm.vllm_api.vllm_names import VLLMValidationError

_CLASSES = (
    ("vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletionRequest"),
    ("vllm.entrypoints.openai.completion.protocol", "CompletionRequest"),
    ("vllm.entrypoints.openai.responses.protocol", "ResponsesRequest"),
)
_HANDLERS: tuple[tuple[str, str, str, str | None], ...] = (
    (
        "vllm.entrypoints.anthropic.serving",
        "AnthropicServingMessages",
        "create_messages",
        "vllm_xargs",
    ),
    (
        "vllm.entrypoints.openai.chat_completion.batch_serving",
        "OpenAIServingChatBatch",
        "create_batch_chat_completion",
        "vllm_xargs",
    ),
    (
        "vllm.entrypoints.scale_out.token_in_token_out.serving",
        "ServingTokens",
        "serve_tokens",
        "sampling_params.extra_args",
    ),
    ("vllm.entrypoints.cohere.serving", "CohereServingChatV2", "create_chat_v2", None),
    (
        "vllm.entrypoints.generate.structured_decisions.serving",
        "ServingStructuredDecisions",
        "create_decision",
        None,
    ),
    (
        "vllm.entrypoints.generate.generative_scoring.serving",
        "ServingGenerativeScoring",
        "create_generative_scoring",
        None,
    ),
)
"""Module, class and method that answers a request, called with the parsed and the raw one; where its requests
have arguments of PAD, None where they have no place for them.
"""


class BodyCheck(Protocol):
    """Raises ValueError for a JSON body with arguments of PAD elsewhere than at `place`."""

    def __call__(self, body: Mapping[str, Any], /, place: str | None) -> None: ...


_METHODS = ("to_sampling_params", "to_beam_search_params")


def check_server_requests(check: Callable[[Any], None], check_body: BodyCheck) -> None:
    """Check every request to this process's server, instead of by checks that were given before.

    Args:
        check: called with a request of a class in _CLASSES.
        check_body: called with the JSON of a request to a route that ignores fields which it does not know.

    Fields that vLLM does not know are in the request's `model_extra`. A ValueError of the check becomes an
    HTTP 400. Does nothing for an engine without a server, or in a vLLM that has the classes elsewhere.
    """
    for module, name in _CLASSES:
        try:
            request_class = getattr(import_module(module), name)
        except (ImportError, AttributeError):
            continue
        request_class.pad_request_check = staticmethod(check)
        for method in _METHODS:
            wrap_method(request_class, method, _checked)
    for module, name, method, place in _HANDLERS:
        try:
            serving_class = getattr(import_module(module), name)
        except (ImportError, AttributeError):  # such as Cohere's, without its SDK
            continue
        serving_class.pad_body_check = staticmethod(partial(check_body, place=place))
        wrap_method(serving_class, method, _with_checked_body)


def _checked(original: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    with _counted_refusal():
        request.pad_request_check(request)
    return original(request, *args, **kwargs)


async def _with_checked_body(
    original: Any, serving: Any, request: Any, raw_request: Any = None, *args: Any, **kwargs: Any
) -> Any:
    if raw_request is not None:  # None for a call that did not come over HTTP
        body = await raw_request.json()  # Starlette keeps what it has read
        with _counted_refusal():
            serving.pad_body_check(body)
    return await original(serving, request, raw_request, *args, **kwargs)


@contextmanager
def _counted_refusal() -> Iterator[None]:
    """A ValueError within it becomes an HTTP 400, and is counted."""
    try:
        yield
    except ValueError as error:
        pad_metrics().count_refused_request()
        raise VLLMValidationError(str(error)) from None
