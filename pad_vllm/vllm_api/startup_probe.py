"""Checks that this vLLM has the internals that PAD wraps, before PAD wraps any of them."""

from __future__ import annotations

import inspect

import vllm
from vllm.v1.engine.input_processor import InputProcessor

from pad_vllm.vllm_api.front_end_interface import request_check_method
from pad_vllm.vllm_api.vllm_names import Attention, BaseModelLoader, init_logger
from pad_vllm.vllm_api.vllm_versions import (
    ACCEPTED_IN_WORDS,
    IncompatibleVLLM,
    is_accepted,
    is_between_releases,
)

logger = init_logger(__name__)


def require_vllm_internals() -> None:
    """Raise IncompatibleVLLM, naming the accepted versions, where this vLLM is a release of another version,
    or lacks what PAD wraps. A build between releases gets a warning.
    """
    if not is_accepted(vllm.__version__):
        message = f"this is vLLM {vllm.__version__}, and pad_vllm accepts vLLM {ACCEPTED_IN_WORDS}"
        if not is_between_releases(vllm.__version__):
            raise IncompatibleVLLM(f"{message}. Install one of these.")
        logger.warning("PAD: %s; this build between releases was not looked at", message)
    required = [
        (Attention.__init__, "prefix"),
        (BaseModelLoader.load_model, "vllm_config"),
        (BaseModelLoader.load_model, "model_config"),
        (InputProcessor.__init__, "vllm_config"),
    ]
    for function, parameter in required:
        if parameter not in inspect.signature(function).parameters:
            raise IncompatibleVLLM(
                f"{function.__qualname__} of vLLM {vllm.__version__} has no parameter "
                f"{parameter!r}; pad_vllm accepts vLLM {ACCEPTED_IN_WORDS}. Install one of these."
            )
    if request_check_method() is None:
        raise IncompatibleVLLM(
            f"InputProcessor of vLLM {vllm.__version__} has no method that pad_vllm knows to check requests; "
            f"pad_vllm accepts vLLM {ACCEPTED_IN_WORDS}. Install one of these."
        )
