"""Checks of our own in vLLM's front end: at start-up, at every request, before streams.

vLLM has no extension point that sees both a request and the engine's config, so these wrap methods of its
front end, each once a process. Leans on `InputProcessor`'s per-request check (probed at `register()`),
`AsyncLLM.generate` and the generator of the responses API. A check of a request that raises ValueError is an
HTTP 400.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from vllm import envs
from vllm.lora.request import LoRARequest
from vllm.v1.engine.input_processor import InputProcessor

from pad_vllm.vllm_api.patches import outcome_rpc
from pad_vllm.vllm_api.patches.lora_endpoints import RuntimeAdapters, patch_lora_endpoints
from pad_vllm.vllm_api.patches.outcome_rpc import RequestGuidance
from pad_vllm.vllm_api.patches.response_fields import patch_responses
from pad_vllm.vllm_api.patches.wrap_method import wrap_method
from pad_vllm.vllm_api.prometheus_metrics import pad_metrics
from pad_vllm.vllm_api.vllm_names import SamplingParams, VllmConfig, VLLMValidationError


class RequestCheck(Protocol):
    """Of one front end's requests."""

    @property
    def adapters(self) -> RuntimeAdapters:
        """Those that may come and go while the server runs."""

    def __call__(self, params: SamplingParams, lora: str | None, /) -> RequestGuidance | None:
        """What guides a request with these parameters and a LoRA of this name; None where nothing does.
        Raises ValueError for one that is refused.
        """


def patch_input_processor(check: Callable[[VllmConfig], RequestCheck | None]) -> None:
    """Have `check` called with the config of every front end that is made in this process.

    A ValueError it raises stops the start-up. What it returns is called with the parameters of
    every request, where a ValueError is an HTTP 400; and the outputs of those that are guided say
    what became of them (answers.py); and adapters come and go by it (lora_endpoints.py).
    `LogitsProcessor.validate_params` cannot do this: it is a class method without the config. Calling twice
    changes nothing.
    """
    original = InputProcessor.__init__
    if getattr(original, "pad_hooked", False):
        return

    def __init__(self: Any, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        admit = check(vllm_config)
        original(self, vllm_config, *args, **kwargs)
        if admit is not None:
            _attach(self, admit)

    __init__.pad_hooked = True  # type: ignore[attr-defined]
    InputProcessor.__init__ = __init__


def request_check_method() -> str | None:
    """The InputProcessor attribute or method that checks a request's sampling parameters."""
    if hasattr(InputProcessor, "_validate_params"):
        return "_validate_params"
    if hasattr(InputProcessor, "_validate_sampling_params"):
        return "_validate_sampling_params"
    return None


def _attach(processor: Any, admit: RequestCheck) -> None:
    name = request_check_method()
    assert name is not None, "probe() ran at register()"
    original = getattr(processor, name)

    def check(params: Any, lora: str | None = None) -> RequestGuidance | None:
        if not isinstance(params, SamplingParams):
            return None
        try:
            return admit(params, lora)
        except ValueError as error:
            pad_metrics().count_refused_request()
            raise VLLMValidationError(str(error)) from None

    def validate(params: Any, *args: Any, **kwargs: Any) -> Any:
        # One that was marked was admitted: its adapter may have been removed since.
        if not (isinstance(params, SamplingParams) and outcome_rpc.has_outcome_key(params)):
            check(params)
        return original(params, *args, **kwargs)

    pad_metrics()  # a scraper finds the series before the first request
    setattr(processor, name, validate)
    processor.pad_check, processor.pad_adapters = check, admit.adapters
    patch_lora_endpoints()
    _hook_streams()
    outcome_rpc.patch_offline_engine(_guided)
    patch_responses()


def _guided(engine: Any, params: Any, given: Iterable[Any]) -> RequestGuidance | None:
    """What guides a request with these parameters on this engine; given: all that it came with. Raises
    VLLMValidationError.
    """
    check = getattr(getattr(engine, "input_processor", None), "pad_check", None)
    guiding: RequestGuidance | None = check and check(params, _lora(given))
    return guiding


def _lora(given: Iterable[Any]) -> str | None:
    """The name of the LoRA among a request's parts, one of which may be a request itself."""
    parts = (getattr(one, "lora_request", one) for one in given)
    return next((one.lora_name for one in parts if isinstance(one, LoRARequest)), None)


def _hook_streams() -> None:
    """Have requests checked when the server calls for an answer, not when it awaits the first token: by
    then vLLM has answered a stream with HTTP 200, and could only break it off.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    wrap_method(AsyncLLM, "generate", _generate)
    try:
        from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    except ImportError:
        return
    wrap_method(OpenAIServingResponses, "_generate_with_builtin_tools", _check_arguments)


def _generate(
    original: Any, engine: Any, prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any
) -> Any:
    guiding = _guided(engine, sampling_params, (prompt, *args, *kwargs.values()))
    if guiding is None:
        return original(engine, prompt, sampling_params, *args, **kwargs)
    params, said = outcome_rpc.with_outcome_key(sampling_params, guiding)
    outputs = original(engine, prompt, params, *args, **kwargs)
    return outcome_rpc.with_outcome(engine, outputs, said)


def _check_arguments(original: Any, serving: Any, *args: Any, **kwargs: Any) -> Any:
    given = (*args, *kwargs.values())
    for value in given:
        _guided(serving.engine_client, value, given)
    return original(serving, *args, **kwargs)


def uses_rust_front_end() -> bool:
    """Whether vLLM's front end is the one in Rust, which runs no Python plugin."""
    return bool(getattr(envs, "VLLM_USE_RUST_FRONTEND", False))
