"""Checks the server's requests as clients wrote them, before vLLM makes sampling parameters of them.

Wraps the methods `to_sampling_params` and `to_beam_search_params` of vLLM's request classes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from pad_vllm.vllm_api.patches.wrap_method import wrap_method
from pad_vllm.vllm_api.prometheus_metrics import pad_metrics
from pad_vllm.vllm_api.vllm_names import VLLMValidationError

_CLASSES = (
    ("vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletionRequest"),
    ("vllm.entrypoints.openai.completion.protocol", "CompletionRequest"),
    ("vllm.entrypoints.openai.responses.protocol", "ResponsesRequest"),
)
_METHODS = ("to_sampling_params", "to_beam_search_params")


def check_server_requests(check: Callable[[Any], None]) -> None:
    """Call `check` with every request to this process's server, instead of a check that was given before.

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


def _checked(original: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        request.pad_request_check(request)
    except ValueError as error:
        pad_metrics().count_refused_request()
        raise VLLMValidationError(str(error)) from None
    return original(request, *args, **kwargs)
