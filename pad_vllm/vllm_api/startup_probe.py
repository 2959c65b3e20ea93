"""Checks that this vLLM has the internals PAD uses, before any of them is wrapped."""

from __future__ import annotations

import inspect

import vllm
from vllm.v1.engine.input_processor import InputProcessor

from pad_vllm.vllm_api.patches.front_end_checks import request_check_method
from pad_vllm.vllm_api.vllm_names import Attention, BaseModelLoader
from pad_vllm.vllm_api.vllm_versions import ACCEPTED_IN_WORDS, IncompatibleVLLM


def require_vllm_internals() -> None:
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
                f"{parameter!r}; pad_vllm accepts vLLM {ACCEPTED_IN_WORDS}. Install one of these."
            )
    if request_check_method() is None:
        raise IncompatibleVLLM(
            f"vLLM {vllm.__version__} checks request parameters in a way that pad_vllm does not "
            f"know; it accepts vLLM {ACCEPTED_IN_WORDS}. Install one of these."
        )
