"""Registers PAD with vLLM in each of its processes: load format "pad" and the front end's request check.

Most of these processes serve without PAD. Only what looks at their config is imported here; the rest is
imported when a config asks for PAD.
"""

from __future__ import annotations

from typing import Any

from pad_vllm.config import LOAD_FORMAT
from pad_vllm.serving.start.pad_activation import asks_for_pad
from pad_vllm.vllm_api.patches.front_end_checks import RequestCheck, patch_input_processor
from pad_vllm.vllm_api.patches.reserved_blocks import patch_scheduler
from pad_vllm.vllm_api.startup_probe import require_vllm_internals
from pad_vllm.vllm_api.vllm_names import BaseModelLoader, VllmConfig, register_model_loader


def register_with_vllm() -> None:
    """Check this vLLM's internals, register load format "pad", and patch the front end's request check.

    Safe to call again. Raises IncompatibleVLLM, or whatever else shows that this vLLM is another one.
    """
    require_vllm_internals()
    register_model_loader(LOAD_FORMAT)(_LazyModelLoader)
    patch_input_processor(request_check)
    patch_scheduler(_num_reserved_blocks)


def request_check(config: VllmConfig) -> RequestCheck | None:
    """The check of a front end's requests, None where the config does not ask for PAD.

    Raises ValueError as `admission.make_admission` does.
    """
    if not asks_for_pad(config):
        return None
    from pad_vllm.serving.frontend import admission

    return admission.make_admission(config)


def _num_reserved_blocks(config: VllmConfig, block_size: int) -> int:
    """KV blocks that a scheduler does not get."""
    if not asks_for_pad(config):
        return 0
    from pad_vllm.serving.start import config_checks, instruction_settings

    pad = config_checks.pad_settings(config)
    return instruction_settings.num_reserved_blocks(pad, block_size)


class _LazyModelLoader(BaseModelLoader):
    """Makes a PADModelLoader, whose module is imported only then."""

    def __new__(cls, load_config: Any) -> Any:
        from pad_vllm.serving.worker.model_loader import PADModelLoader

        return PADModelLoader(load_config)
