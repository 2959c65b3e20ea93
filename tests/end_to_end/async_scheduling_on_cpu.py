"""Async scheduling on vLLM's CPU platform, which turns it off: for tests, before an engine is made.

What matters of it is real then: a step is scheduled and run before the tokens of the one before are
on any host list, which holds -1 in their place; the runner feeds them from the device. What is not: the
streams and events that a GPU would have, which do nothing here.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch


class _Nothing:
    """Stands in for a CUDA stream or event."""

    device = torch.device("cpu")

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_kwargs: None


def enable() -> None:
    """For every engine made in this process from here on."""
    from vllm.platforms.cpu import CpuPlatform

    torch.cuda.Stream = torch.cuda.Event = _Nothing
    torch.cuda.current_stream = lambda *_args: _Nothing()
    torch.cuda.stream = lambda *_args: contextlib.nullcontext()
    original = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        original(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
