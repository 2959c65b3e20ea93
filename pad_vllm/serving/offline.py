"""A vLLM engine without PAD, for drawing responses, in this process: another would busy-wait on a core.

In: a base by any of its names, arguments of vllm.LLM and of SamplingParams. Out: both objects.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pad_vllm.demo.names import resolve_base


def engine(base: str, llm: Mapping[str, Any], sampling: Mapping[str, Any]) -> tuple[Any, Any]:
    """(vllm.LLM, vllm.SamplingParams)."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    return LLM(resolve_base(base), **llm), SamplingParams(**sampling)
