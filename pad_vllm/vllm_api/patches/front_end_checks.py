"""PAD's checks in vLLM's front end: of the config at start-up, and of every request.

vLLM has no extension point that sees both a request and the engine's config, so this module wraps methods
of the front end, each once a process: `InputProcessor.__init__` and its per-request check (startup_probe.py
looks for it at `register()`), `AsyncLLM.generate`, and the generator of the responses API.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Protocol

from vllm.v1.engine.input_processor import InputProcessor

from pad_vllm.argument_names import INSTRUCTION_KEY, PREFERENCE
from pad_vllm.vllm_api.front_end_interface import request_check_method
from pad_vllm.vllm_api.patches.lora_endpoints import RuntimeAdapters, patch_lora_endpoints
from pad_vllm.vllm_api.patches.outcome_rpc import (
    has_outcome_key,
    patch_offline_engine,
    with_outcome,
    with_outcome_key,
)
from pad_vllm.vllm_api.patches.response_fields import patch_responses
from pad_vllm.vllm_api.patches.user_request import RequestGuidance, UserRequest
from pad_vllm.vllm_api.patches.wrap_method import wrap_method
from pad_vllm.vllm_api.prometheus_metrics import pad_metrics
from pad_vllm.vllm_api.vllm_names import (
    GracefulHTTPError,
    LoRARequest,
    SamplingParams,
    VllmConfig,
    VLLMValidationError,
)

# 1. At start-up: vLLM makes a front end, and PAD checks its config.


class RequestCheck(Protocol):
    """The check of one front end's requests, made from its config."""

    @property
    def adapters(self) -> RuntimeAdapters:
        """The adapters that clients load and unload while the server runs."""

    @property
    def takes_instructions(self) -> bool:
        """Whether requests may have a sentence that the base's own reward stream reads."""

    def __call__(
        self, params: SamplingParams, lora: LoRARequest | None, /
    ) -> RequestGuidance | UserRequest | None:
        """What guides a request with these parameters and this LoRA; None for an unguided request. Raises
        ValueError for a request that is refused, PermissionError for one that names a user it may not name,
        ConnectionError where the users' database does not answer.
        """


def patch_input_processor(check: Callable[[VllmConfig], RequestCheck | None]) -> None:
    """Call `check` with the config of every front end that vLLM makes in this process.

    A ValueError of `check` stops the start-up. The RequestCheck that it returns sees the parameters of every
    request of that front end: its ValueError is an HTTP 400. The outputs of guided requests get the field
    `pad` (outcome_rpc.py), and clients load and unload the adapters (lora_endpoints.py). None leaves a
    front end as it is. `LogitsProcessor.validate_params` cannot do this: it is a class method without the
    config. Calling twice changes nothing.
    """
    if wrap_method(InputProcessor, "__init__", _check_config):
        InputProcessor.pad_config_check = staticmethod(check)


def _check_config(
    original: Any, processor: Any, vllm_config: VllmConfig, *args: Any, **kwargs: Any
) -> None:
    request_check = processor.pad_config_check(vllm_config)
    original(processor, vllm_config, *args, **kwargs)
    if request_check is not None:
        _install(processor, request_check)


def _install(processor: Any, request_check: RequestCheck) -> None:
    """Put all that serves guided requests into a front end."""
    pad_metrics()  # a scraper finds the series before the first request
    processor.pad_admission = request_check
    processor.pad_adapters = request_check.adapters
    _wrap_parameter_check(processor)
    if request_check.takes_instructions:
        _wrap_request_maker(processor)
    patch_lora_endpoints()
    _patch_generators()
    patch_offline_engine(_guidance_of)
    patch_responses()


# 2. At every request: vLLM checks its parameters, and PAD does so before.


def _wrap_parameter_check(processor: Any) -> None:
    name = request_check_method()
    assert name is not None, "require_vllm_internals() ran at register()"
    original = getattr(processor, name)

    def validate(params: Any, *args: Any, **kwargs: Any) -> Any:
        # A request with an outcome key was admitted by the code below: its adapter may be unloaded by now.
        if not (isinstance(params, SamplingParams) and has_outcome_key(params)):
            _admit(processor, params, lora=None)
        return original(params, *args, **kwargs)

    setattr(processor, name, validate)


def _wrap_request_maker(processor: Any) -> None:
    """Requests of different instructions share no block of the prefix cache: their reward streams differ.

    Both kinds of salt begin with a word of ours, so that no client's own salt is that of an instruction.
    """
    original = processor.process_inputs

    def process_inputs(*args: Any, **kwargs: Any) -> Any:
        request = original(*args, **kwargs)
        extra_args = getattr(request.sampling_params, "extra_args", None) or {}
        if instruction := extra_args.get(INSTRUCTION_KEY):
            digest = hashlib.sha256(json.dumps(instruction).encode()).hexdigest()
            request.cache_salt = f"instruction:{digest}:{request.cache_salt or ''}"
        elif request.cache_salt:
            request.cache_salt = f"plain:{request.cache_salt}"
        return request

    processor.process_inputs = process_inputs


def _admit(
    processor: Any, params: Any, lora: LoRARequest | None
) -> RequestGuidance | UserRequest | None:
    """What guides a request; None for an unguided or a pooling request. Raises an error of vLLM's, which is
    an HTTP 400, 403 or 503.
    """
    if not isinstance(params, SamplingParams):
        return None
    if INSTRUCTION_KEY in (params.extra_args or {}):
        raise VLLMValidationError(
            f"{INSTRUCTION_KEY} is PAD's own; accepted from clients is {PREFERENCE}, a sentence. "
            "Leave it out."
        )
    try:
        guidance: RequestGuidance | UserRequest | None = processor.pad_admission(params, lora)
    except ValueError as error:
        pad_metrics().count_refused_request()
        raise VLLMValidationError(str(error)) from None
    except PermissionError as error:
        pad_metrics().count_refused_request()
        raise GracefulHTTPError(str(error), HTTPStatus.FORBIDDEN) from None
    except ConnectionError as error:
        raise GracefulHTTPError(str(error), HTTPStatus.SERVICE_UNAVAILABLE) from None
    return guidance


# 3. Earlier, where the server calls for an answer. The check above runs as the server awaits the first token:
# by then vLLM has answered a stream with HTTP 200, and could only break it off.


def _patch_generators() -> None:
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    from vllm.v1.engine.async_llm import AsyncLLM

    wrap_method(AsyncLLM, "generate", _generate)
    wrap_method(OpenAIServingResponses, "_generate_with_builtin_tools", _check_responses_request)


def _generate(
    original: Any, engine: Any, prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any
) -> Any:
    guidance = _guidance_of(engine, sampling_params, (prompt, *args, *kwargs.values()))
    if guidance is None:
        return original(engine, prompt, sampling_params, *args, **kwargs)
    params, request = with_outcome_key(sampling_params, guidance)
    outputs = original(engine, prompt, params, *args, **kwargs)
    return with_outcome(engine, outputs, request)


def _check_responses_request(original: Any, serving: Any, *args: Any, **kwargs: Any) -> Any:
    arguments = (*args, *kwargs.values())
    for argument in arguments:  # one of them is the sampling parameters
        _guidance_of(serving.engine_client, argument, arguments)
    return original(serving, *args, **kwargs)


def _guidance_of(
    engine: Any, params: Any, arguments: Iterable[Any]
) -> RequestGuidance | UserRequest | None:
    """What guides a request on this engine; None without PAD, and for an unguided request.

    Args:
        engine: an AsyncLLM or LLMEngine.
        params: the request's parameters, or any other value: that is not guided.
        arguments: all that the engine was called with, among them the request's LoRA.

    Raises:
        VLLMValidationError: the request is refused.
    """
    processor = getattr(engine, "input_processor", None)
    if not hasattr(processor, "pad_admission"):
        return None
    return _admit(processor, params, _lora(arguments))


def _lora(arguments: Iterable[Any]) -> LoRARequest | None:
    """The LoRA among a request's arguments, or in an engine request among them."""
    values = (getattr(argument, "lora_request", argument) for argument in arguments)
    return next((value for value in values if isinstance(value, LoRARequest)), None)
