"""A vLLM engine in this process, for generating responses: one in another process would busy-wait on a core.

In: a base by any of its names, arguments of vllm.LLM and of vllm.SamplingParams. Out: those objects.
`run_in_subprocess` calls a function that uses them in a process of its own, so that the engine's memory is
free afterwards.
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
    """A vllm.LLM in this process.

    Args:
        base: a name of the catalog, a folder or a hub name.
        llm_arguments: further keyword arguments of vllm.LLM.
        adapter: folder of the adapter that guides; None for an engine without one.
        settings: the other settings of additional_config['pad']; without an adapter and settings the engine
            has no PAD.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # In one process vLLM's own binding puts its CPU threads on one core.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm import LLM

    named = {} if adapter is None else {"adapter": adapter}
    pad = _pad_arguments({**named, **(settings or {})}) if named or settings else {}
    return LLM(resolve_base(base), **pad, **llm_arguments)


def sampling_params(**arguments: Any) -> Any:
    """vllm.SamplingParams of these arguments."""
    from vllm import SamplingParams

    return SamplingParams(**arguments)


def with_pad_arguments(params: Any, arguments: Mapping[str, Any]) -> Any:
    """A copy of vllm.SamplingParams that has these `pad_` arguments among its extra_args."""
    copy = params.clone()
    copy.extra_args = {**(params.extra_args or {}), **arguments}
    return copy


def _pad_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of vllm.LLM that switch PAD on."""
    return {
        "load_format": LOAD_FORMAT,
        "logits_processors": [LOGITS_PROCESSOR],
        "additional_config": {PAD_KEY: dict(settings)},
    }


def run_in_subprocess(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a new process, which also ends when this one does, however it ends.

    Args:
        function: anything that can be pickled, as its arguments and its result.
        *args: positional arguments of the function.
        **kwargs: keyword arguments of the function.

    Returns:
        What the function returns. What it raises is raised here.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_end_with_parent) as pool:
        return pool.submit(function, *args, **kwargs).result()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
