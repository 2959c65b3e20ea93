"""What vLLM's front end is in this process: the method that checks requests, and whether it is the one in
Rust.
"""

from __future__ import annotations

from vllm import envs
from vllm.v1.engine.input_processor import InputProcessor


def request_check_method() -> str | None:
    """Name of the InputProcessor method that checks a request's sampling parameters; None in an unknown
    vLLM.
    """
    if hasattr(InputProcessor, "_validate_params"):
        return "_validate_params"
    if hasattr(InputProcessor, "_validate_sampling_params"):
        return "_validate_sampling_params"
    return None


def uses_rust_front_end() -> bool:
    """Whether vLLM's front end is the one in Rust, which runs no Python plugin."""
    return bool(getattr(envs, "VLLM_USE_RUST_FRONTEND", False))
