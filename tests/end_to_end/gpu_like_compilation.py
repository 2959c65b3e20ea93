"""What can be had on a CPU of how vLLM's V2 runner compiles on a GPU: for tests, before an engine is made.

Real here: vLLM's own backend traces the whole model and splits it at every attention, those of the reward
stream too (a CPU alone traces once and splits nothing); the pieces are run as they were traced. Batches
are padded to the sizes that graphs would be captured for. Not here: inductor's kernels for a GPU, and graphs,
so that Python runs in every step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

SIZES = 16  # tokens of a step are padded to a multiple

padded: list[int] = []
"""Tokens that were added, a step each."""


def enable() -> None:
    """For every engine made in this process from here on."""
    from vllm.config import CompilationMode
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.worker.gpu import model_runner

    check = CpuPlatform.check_and_update_config.__func__
    dispatch = model_runner.dispatch_cg_and_sync_dp

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        check(cls, vllm_config)
        compilation = vllm_config.compilation_config
        compilation.mode = CompilationMode.VLLM_COMPILE
        compilation.backend = "eager"
        compilation.compile_sizes = []  # no sizes of their own: one range has them all

    def dispatched(*args: Any, **kwargs: Any) -> Any:
        batch, sync = dispatch(*args, **kwargs)
        more = -batch.num_tokens % SIZES
        padded.append(more)
        return dataclasses.replace(batch, num_tokens=batch.num_tokens + more), sync

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
    model_runner.dispatch_cg_and_sync_dp = dispatched


def pieces() -> int:
    """How many pieces the models of this process were split into, attention among them."""
    from vllm.compilation.counter import compilation_counter

    return compilation_counter.num_piecewise_graphs_seen
