"""Checks of our own in vLLM's front end: at start-up, at every request, before streams and beam search.

vLLM has no extension point that sees both a request and the engine's config, so these wrap methods of its
front end, each once a process. Leans on `InputProcessor`'s per-request check (probed at `register()`),
`AsyncLLM.generate`, the responses API's generator and the requests' `to_beam_search_params`. A request's
check that raises ValueError is an HTTP 400.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vllm import envs
from vllm.v1.engine.input_processor import InputProcessor

from pad_vllm.vllm_api.names import SamplingParams, VllmConfig, VLLMValidationError


def on_admission(check: Callable[[VllmConfig], Callable[[SamplingParams], None] | None]) -> None:
    """Have `check` called with the config of every front end that is made in this process.

    A ValueError it raises stops the start-up. What it returns is called with the parameters of
    every request, where a ValueError is an HTTP 400. `LogitsProcessor.validate_params` cannot do
    this: it is a class method without the config. Calling twice changes nothing.
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


def on_beam_search(check: Callable[[Mapping[str, Any] | None], None]) -> None:
    """Have `check` called with the vllm_xargs of every request for beam search in this process.

    vLLM turns such a request into many of its own without vllm_xargs, so that they cannot be checked
    later. A ValueError is an HTTP 400. Calling twice changes nothing.
    """
    try:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    except ImportError:
        return  # an engine without a server, or a vLLM that has them elsewhere
    for request in (ChatCompletionRequest, CompletionRequest):
        _check_beam_search(request, check)


def _check_beam_search(request: Any, check: Callable[[Mapping[str, Any] | None], None]) -> None:
    original = request.to_beam_search_params
    if getattr(original, "pad_hooked", False):
        return

    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            check(self.vllm_xargs)
        except ValueError as error:
            raise VLLMValidationError(str(error)) from None
        return original(self, *args, **kwargs)

    to_beam_search_params.pad_hooked = True  # type: ignore[attr-defined]
    request.to_beam_search_params = to_beam_search_params


def admission_hook() -> str | None:
    """The InputProcessor attribute or method that checks a request's sampling parameters."""
    if hasattr(InputProcessor, "_validate_params"):
        return "_validate_params"
    if hasattr(InputProcessor, "_validate_sampling_params"):
        return "_validate_sampling_params"
    return None


def _attach(processor: Any, admit: Callable[[SamplingParams], None]) -> None:
    name = admission_hook()
    assert name is not None, "probe() ran at register()"
    original = getattr(processor, name)

    def check(params: Any) -> None:
        if isinstance(params, SamplingParams):
            try:
                admit(params)
            except ValueError as error:
                raise VLLMValidationError(str(error)) from None

    def validate(params: Any, *args: Any, **kwargs: Any) -> Any:
        check(params)
        return original(params, *args, **kwargs)

    setattr(processor, name, validate)
    processor.pad_check = check
    _check_before_streams()


def _check_before_streams() -> None:
    """Have requests checked when the server calls for an answer, not when it awaits the first token:
    by then vLLM has answered a stream with HTTP 200, and could only break it off.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    _check_when_called(AsyncLLM, "generate", lambda engine: engine)
    try:
        from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    except ImportError:
        return
    name = "_generate_with_builtin_tools"
    _check_when_called(OpenAIServingResponses, name, lambda serving: serving.engine_client)


def _check_when_called(cls: Any, name: str, engine_of: Callable[[Any], Any]) -> None:
    original = getattr(cls, name, None)
    if original is None or getattr(original, "pad_hooked", False):
        return

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        processor = getattr(engine_of(self), "input_processor", None)
        if check := getattr(processor, "pad_check", None):
            for value in (*args, *kwargs.values()):
                check(value)
        return original(self, *args, **kwargs)

    generate.pad_hooked = True  # type: ignore[attr-defined]
    setattr(cls, name, generate)


def rust_front_end() -> bool:
    """Whether vLLM's front end is the one in Rust, which runs no Python plugin."""
    return bool(getattr(envs, "VLLM_USE_RUST_FRONTEND", False))
