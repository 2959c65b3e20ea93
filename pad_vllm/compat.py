"""The one file that knows vLLM's versions and internals. Everything vLLM-shaped is imported here.

Official: model loaders, logits processors (V1 and, from 0.32, V2), Attention. Internal, probed at
`register()`: how Attention objects are constructed, and the front end's per-request check.
Out: names the rest of the package uses. It does not know what PAD does with them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import vllm
from vllm import envs
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.model_loader import get_model_loader, register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.sample.logits_processor.interface import (
    BatchUpdate,
    MoveDirectionality,
)
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1LogitsProcessor

try:  # 0.32 and later; 0.25 keeps it elsewhere
    from vllm.model_executor.layers.attention import Attention
except ImportError:
    from vllm.attention.layer import Attention

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2LogitsProcessor
except ImportError:  # before 0.32 custom processors ran on the V1 runner only

    class V2LogitsProcessor:  # type: ignore[no-redef]
        """Stands in where this vLLM has no V2 interface."""


try:
    from vllm.exceptions import VLLMValidationError
except ImportError:
    VLLMValidationError = ValueError

__all__ = [
    "Attention",
    "AttentionRecord",
    "BaseModelLoader",
    "BatchUpdate",
    "MoveDirectionality",
    "SamplingParams",
    "V1LogitsProcessor",
    "V2LogitsProcessor",
    "VllmConfig",
    "get_model_loader",
    "init_logger",
    "last_tokens",
    "on_admission",
    "on_beam_search",
    "probe",
    "recorded_attention",
    "register_model_loader",
    "rust_front_end",
    "set_current_vllm_config",
    "set_default_torch_dtype",
]

MADE_FOR = "0.32 and 0.33, and 0.25 on the V1 runner (tested: 0.32)"


class IncompatibleVLLM(RuntimeError):
    """This vLLM lacks something PAD leans on."""


def probe() -> None:
    """Check the internals PAD uses; raises IncompatibleVLLM with the versions."""
    wanted = [
        (Attention.__init__, "prefix"),
        (BaseModelLoader.load_model, "vllm_config"),
        (BaseModelLoader.load_model, "model_config"),
        (InputProcessor.__init__, "vllm_config"),
    ]
    for function, parameter in wanted:
        if parameter not in inspect.signature(function).parameters:
            raise IncompatibleVLLM(
                f"{function.__qualname__} of vLLM {vllm.__version__} has no parameter "
                f"{parameter!r}; pad_vllm is made for vLLM {MADE_FOR}. Install one of these."
            )
    if _admission_hook() is None:
        raise IncompatibleVLLM(
            f"vLLM {vllm.__version__} checks request parameters in a way that pad_vllm does not "
            f"know; it is made for vLLM {MADE_FOR}. Install one of these."
        )


class AttentionRecord:
    """How each Attention of a model was made, so that another can be made just like it."""

    def __init__(self) -> None:
        self._signature = inspect.signature(Attention.__init__)
        self._calls: dict[str, inspect.BoundArguments] = {}

    def note(self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the arguments of one constructor call."""
        bound = self._signature.bind(attention, *args, **kwargs)
        self._calls[bound.arguments.get("prefix", "")] = bound

    def again(self, attention: Any, *, suffix: str) -> Any:
        """A second Attention with the arguments of `attention`, its layer name plus `suffix`."""
        bound = self._calls[attention.layer_name]
        bound.arguments["prefix"] = attention.layer_name + suffix
        bound.arguments["attn_backend"] = attention.attn_backend
        twin = Attention(*bound.args[1:], **bound.kwargs)
        twin.process_weights_after_loading(attention.dtype)
        return twin


@contextmanager
def recorded_attention() -> Iterator[AttentionRecord]:
    """While open, notes how every Attention is constructed."""
    record, original = AttentionRecord(), Attention.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        record.note(self, args, kwargs)
        original(self, *args, **kwargs)

    Attention.__init__ = __init__
    try:
        yield record
    finally:
        Attention.__init__ = original


def _admission_hook() -> str | None:
    """The InputProcessor attribute or method that checks a request's sampling parameters."""
    if hasattr(InputProcessor, "_validate_params"):
        return "_validate_params"
    if hasattr(InputProcessor, "_validate_sampling_params"):
        return "_validate_sampling_params"
    return None


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

    vLLM makes such a request into many of its own and leaves vllm_xargs behind, so that no later
    place knows them. A ValueError is an HTTP 400. Calling twice changes nothing.
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


def last_tokens() -> list[int] | None:
    """Inside a forward: of each row of the batch the place of its last token; None where the attention
    backend does not say. vLLM keeps it for attention kernels (vllm/forward_context.py).
    """
    from vllm.forward_context import get_forward_context, is_forward_context_available

    if not is_forward_context_available():
        return None
    metadata = get_forward_context().attn_metadata
    if not isinstance(metadata, dict) or not metadata:
        return None
    starts = getattr(next(iter(metadata.values())), "query_start_loc", None)
    return None if starts is None else (starts[1:] - 1).tolist()


def rust_front_end() -> bool:
    """Whether vLLM's front end is the one in Rust, which runs no Python plugin."""
    return bool(getattr(envs, "VLLM_USE_RUST_FRONTEND", False))


def _attach(processor: Any, admit: Callable[[SamplingParams], None]) -> None:
    name = _admission_hook()
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
    """Have requests checked where the server asks for an answer, not where its first token is due:
    by then vLLM has answered a stream with HTTP 200, and breaks it off.
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
