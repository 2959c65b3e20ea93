"""PAD's adapters through vLLM's own `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`.

The server has these endpoints, behind its API key, where the operator sets
VLLM_ALLOW_RUNTIME_LORA_UPDATING; it then has one front end only. Wraps the methods of `OpenAIServingModels`
that answer them. A request about anything but an adapter of PAD's goes on to vLLM.
"""

from __future__ import annotations

from http import HTTPStatus
from importlib import import_module
from typing import Any, Protocol

from vllm import envs

from pad_vllm.vllm_api.patches.wrap_method import wrap_method
from pad_vllm.vllm_api.vllm_names import init_logger
from pad_vllm.wording import short_repr

logger = init_logger(__name__)


class RuntimeAdapters(Protocol):
    """The adapters of a running server, by the names that requests give."""

    def has(self, name: str) -> bool:
        """Whether requests may name this adapter."""

    def handles_path(self, path: str) -> bool:
        """Whether `path` is PAD's to load: it has an adapter of PAD's, or this server loads nothing else."""

    async def load(self, engine: Any, name: str, path: str, *, replacing: bool) -> None:
        """Load an adapter in all workers, for requests that name it.

        Args:
            engine: the AsyncLLM.
            name: by which requests name the adapter.
            path: its folder.
            replacing: whether an adapter of this name may be replaced.

        Raises:
            ValueError: the adapter cannot be served.
        """

    async def unload(self, engine: Any, name: str) -> None:
        """Refuse this name in requests from now on. Raises ValueError where no adapter has it."""


def patch_lora_endpoints() -> None:
    """Wrap the server's two endpoints. Calling twice changes nothing; without a server nothing is wrapped."""
    try:
        models = import_module("vllm.entrypoints.openai.models.serving").OpenAIServingModels
    except (ImportError, AttributeError):
        return
    wrap_method(models, "load_lora_adapter", _load)
    wrap_method(models, "unload_lora_adapter", _unload)


def _adapters(models: Any) -> RuntimeAdapters | None:
    adapters: RuntimeAdapters | None = getattr(models.input_processor, "pad_adapters", None)
    return adapters


async def _load(original: Any, models: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    adapters, name, path = _adapters(models), request.lora_name, request.lora_path
    if adapters is None or not (name and path):
        return await original(models, request, *args, **kwargs)
    if not adapters.handles_path(path):
        if adapters.has(name):
            return _refusal(
                f"lora_name is {short_repr(name)}, an adapter of PAD's; accepted: another name"
            )
        return await original(models, request, *args, **kwargs)
    if not envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING:  # --lora-modules: there may be several front ends
        return _refusal(
            f"{short_repr(path)} is an adapter of PAD's, and --lora-modules takes LoRAs; accepted: "
            f"""additional_config {{"pad": {{"adapters": {{"{name}": "{path}"}}}}}}"""
        )
    if models.is_base_model(name) or name in models.lora_requests:
        return _refusal(f"lora_name is {short_repr(name)}, a served model; accepted: another name")
    try:
        await adapters.load(models.engine_client, name, path, replacing=request.load_inplace)
    except (ValueError, OSError) as error:
        return _refusal(str(error))
    return f"Success: PAD adapter {short_repr(name)} added successfully."


async def _unload(original: Any, models: Any, request: Any) -> Any:
    adapters = _adapters(models)
    if adapters is None or not adapters.has(request.lora_name):
        return await original(models, request)
    try:
        await adapters.unload(models.engine_client, request.lora_name)
    except ValueError as error:  # another client was faster
        return _refusal(str(error))
    return f"Success: PAD adapter {short_repr(request.lora_name)} removed successfully."


def _refusal(message: str) -> Any:
    """An HTTP 400 in vLLM's form."""
    from vllm.entrypoints.serve import create_error_response

    return create_error_response(
        message=message, err_type="InvalidUserInput", status_code=HTTPStatus.BAD_REQUEST
    )
