"""What PAD enters into vLLM, in every process of it: load format "pad" and the front end's request check.

Most of these processes serve without PAD: what is more than a look at their config is imported when a
config asks for it.
"""

from __future__ import annotations

from typing import Any

from pad_vllm.config import LOAD_FORMAT
from pad_vllm.serving.start.unsupported_configs import asks_for_pad
from pad_vllm.vllm_api.patches.front_end_checks import RequestCheck, patch_input_processor
from pad_vllm.vllm_api.startup_probe import require_vllm_internals
from pad_vllm.vllm_api.vllm_names import BaseModelLoader, VllmConfig, register_model_loader


def register_with_vllm() -> None:
    """Probe this vLLM, register load format "pad", hook the front end's request check.

    Safe to call again. Raises what is wrong with this vLLM.
    """
    require_vllm_internals()
    register_model_loader(LOAD_FORMAT)(_Loader)
    patch_input_processor(request_check)


def request_check(config: VllmConfig) -> RequestCheck | None:
    """The check of requests, None where the config asks for no PAD. See admission.front_end."""
    if not asks_for_pad(config):
        return None
    from pad_vllm.serving.frontend import admission

    return admission.make_admission(config)


class _Loader(BaseModelLoader):
    """Becomes a PADModelLoader where one is made."""

    def __new__(cls, load_config: Any) -> Any:
        from pad_vllm.serving.worker.model_loader import PADModelLoader

        return PADModelLoader(load_config)
