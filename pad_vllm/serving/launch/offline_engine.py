"""A vLLM engine for drawing responses, in this process: another would busy-wait on a core.

In: a base by any of its names, arguments of vllm.LLM and of SamplingParams. Out: those objects. `apart` runs
what uses them in a process of its own, so that the engine's memory is free afterwards.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any, ParamSpec, TypeVar

from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.config import LOAD_FORMAT, LOGITS_PROCESSOR, PAD_KEY

P = ParamSpec("P")
T = TypeVar("T")


def offline_llm(
    base: str,
    llm_arguments: Mapping[str, Any],
    adapter: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """vllm.LLM; adapter: a folder, for one that guides, under these settings in additional_config['pad']."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # In one process vLLM's own binding puts its CPU threads on one core.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm import LLM

    guides = {} if adapter is None else _guiding({"adapter": adapter, **(settings or {})})
    return LLM(resolve_base(base), **guides, **llm_arguments)


def sampling_params(**arguments: Any) -> Any:
    """vllm.SamplingParams."""
    from vllm import SamplingParams

    return SamplingParams(**arguments)


def with_pad_arguments(params: Any, arguments: Mapping[str, Any]) -> Any:
    """A copy of vllm.SamplingParams with a request's arguments of PAD."""
    asked = params.clone()
    asked.extra_args = {**(params.extra_args or {}), **arguments}
    return asked


def _guiding(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "load_format": LOAD_FORMAT,
        "logits_processors": [LOGITS_PROCESSOR],
        "additional_config": {PAD_KEY: dict(settings)},
    }


def run_in_subprocess(call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """The call's result, from a process of its own, which ends when this one does, however it ends."""
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned, initializer=_end_with_parent) as pool:
        return pool.submit(call, *args, **named).result()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
