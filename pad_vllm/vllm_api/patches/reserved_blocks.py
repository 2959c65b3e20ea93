"""Takes the last blocks of the KV cache away from vLLM's scheduler: PAD writes into them itself.

The worker allocates all blocks; the scheduler (vllm/v1/core/sched/scheduler.py) is told of fewer, and so
never gives the last ones to a request. Knows nothing of what they are for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from vllm.config import SchedulerConfig

from pad_vllm.vllm_api.patches.wrap_method import wrap_method
from pad_vllm.vllm_api.vllm_names import VllmConfig


def patch_scheduler(num_reserved: Callable[[VllmConfig, int], int]) -> None:
    """Reserve blocks of every scheduler that is made in this process. Calling twice changes nothing.

    num_reserved: called with an engine's config and the tokens of a block; returns how many blocks.
    """
    if wrap_method(SchedulerConfig, "get_scheduler_cls", _patch_class):
        SchedulerConfig.pad_num_reserved = staticmethod(num_reserved)


def _patch_class(original: Any, scheduler_config: Any) -> Any:
    """Where vLLM asks for the class: other processes need not import it."""
    from vllm.v1.core.sched.scheduler import Scheduler

    wrap_method(Scheduler, "__init__", _reserve)
    return original(scheduler_config)


def _reserve(
    original: Any, scheduler: Any, vllm_config: VllmConfig, kv_cache_config: Any, *a: Any, **k: Any
) -> None:
    original(scheduler, vllm_config, _without_reserved(vllm_config, kv_cache_config), *a, **k)


def _without_reserved(config: VllmConfig, kv_cache_config: Any) -> Any:
    if not kv_cache_config.kv_cache_groups:  # a model without attention
        return kv_cache_config
    block_size = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
    num_reserved = SchedulerConfig.pad_num_reserved(config, block_size)
    if not num_reserved:
        return kv_cache_config
    num_left = kv_cache_config.num_blocks - num_reserved
    # One block is vLLM's own, for padding.
    num_needed = 1 + -(-config.model_config.max_model_len // block_size)
    if len(kv_cache_config.kv_cache_groups) != 1:
        raise ValueError(
            "pad_vllm keeps instructions in a KV cache of one group, and this model's has "
            f"{len(kv_cache_config.kv_cache_groups)}; drop --instructions, or serve a base whose layers all "
            "have full attention."
        )
    if num_left < num_needed:
        raise ValueError(
            f"the KV cache has {kv_cache_config.num_blocks} blocks of {block_size} tokens, and instructions "
            f"take {num_reserved} of them; {num_needed} have to be left for one request of max_model_len. "
            "Lower max_instructions or max_instruction_tokens in additional_config['pad'], or "
            "--max-model-len, or give the cache more memory."
        )
    return dataclasses.replace(kv_cache_config, num_blocks=num_left)
