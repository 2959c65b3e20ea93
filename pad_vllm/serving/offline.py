"""A vLLM engine for drawing responses, in this process: another would busy-wait on a core.

In: a base by any of its names, arguments of vllm.LLM and of SamplingParams. Out: those objects.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pad_vllm.config import KEY, LOAD_FORMAT, PROCESSOR
from pad_vllm.demo.names import resolve_base


def engine(base: str, llm: Mapping[str, Any], adapter: str | None = None) -> Any:
    """vllm.LLM; adapter: a folder, for one that guides."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM

    guides = {} if adapter is None else _guiding(adapter)
    return LLM(resolve_base(base), **guides, **llm)


def sampling(**arguments: Any) -> Any:
    """vllm.SamplingParams."""
    from vllm import SamplingParams

    return SamplingParams(**arguments)


def _guiding(adapter: str) -> dict[str, Any]:
    return {
        "load_format": LOAD_FORMAT,
        "logits_processors": [PROCESSOR],
        "additional_config": {KEY: {"adapter": adapter}},
    }
