"""Blocks of the KV cache that vLLM's scheduler does not get."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from vllm.config import SchedulerConfig

from pad_vllm.vllm_api.patches import reserved_blocks

BLOCK = 16


@dataclasses.dataclass
class CacheConfig:
    """As much of vLLM's KVCacheConfig as is looked at, and something else."""

    num_blocks: int
    kv_cache_groups: list
    kv_cache_layout: str = "NHD"


def groups(*block_sizes):
    return [SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=size)) for size in block_sizes]


def vllm_config(max_model_len=64):
    return SimpleNamespace(model_config=SimpleNamespace(max_model_len=max_model_len))


@pytest.fixture
def reserve(monkeypatch):
    """A function that says how many are reserved; what it was asked for."""
    asked = []

    def set_to(number):
        def num_reserved(config, block_size):
            asked.append((config, block_size))
            return number

        monkeypatch.setattr(
            SchedulerConfig, "pad_num_reserved", staticmethod(num_reserved), raising=False
        )
        return asked

    return set_to


def test_the_scheduler_is_told_of_fewer_and_the_worker_of_all(reserve):
    asked, config, cache = reserve(7), vllm_config(), CacheConfig(50, groups(BLOCK))
    told = reserved_blocks._without_reserved(config, cache)
    assert told == CacheConfig(43, cache.kv_cache_groups)
    assert cache.num_blocks == 50
    assert asked == [(config, BLOCK)]


def test_where_none_are_reserved_nothing_changes(reserve):
    reserve(0)
    for cache in (CacheConfig(2, groups(BLOCK)), CacheConfig(50, groups(BLOCK, BLOCK))):
        assert reserved_blocks._without_reserved(vllm_config(), cache) is cache


@pytest.mark.parametrize("number", [2, 3])
def test_a_cache_of_several_groups_is_refused_with_what_to_drop(reserve, number):
    reserve(7)
    cache = CacheConfig(5000, groups(*[BLOCK] * number))
    with pytest.raises(ValueError, match=f"this model's has {number}; drop --instructions"):
        reserved_blocks._without_reserved(vllm_config(), cache)


@pytest.mark.parametrize("max_model_len", [49, 64])
def test_one_request_of_the_greatest_length_has_to_fit_beside_vllms_own_block(
    reserve, max_model_len
):
    reserve(7)
    just_enough = CacheConfig(12, groups(BLOCK))
    told = reserved_blocks._without_reserved(vllm_config(max_model_len), just_enough)
    assert told.num_blocks == 5
    with pytest.raises(
        ValueError, match="11 blocks of 16 tokens, .* take 7 .*; 5 have .*max_instructions"
    ):
        reserved_blocks._without_reserved(
            vllm_config(max_model_len), CacheConfig(11, groups(BLOCK))
        )


def test_more_than_the_cache_has_are_refused(reserve):
    reserve(70)
    with pytest.raises(ValueError, match="take 70 of them"):
        reserved_blocks._without_reserved(vllm_config(), CacheConfig(50, groups(BLOCK)))


def test_a_scheduler_is_made_with_what_is_left(reserve):
    reserve(7)
    made = []

    def init(scheduler, vllm_config, kv_cache_config, *args, **kwargs):
        made.append((scheduler, vllm_config, kv_cache_config.num_blocks, args, kwargs))

    config, cache = vllm_config(), CacheConfig(50, groups(BLOCK))
    reserved_blocks._reserve(init, "scheduler", config, cache, 3, block_size=BLOCK)
    reserved_blocks._reserve(init, "scheduler", vllm_config=config, kv_cache_config=cache)
    assert made == [
        ("scheduler", config, 43, (3,), {"block_size": BLOCK}),
        ("scheduler", config, 43, (), {}),
    ]


def test_vllms_scheduler_is_wrapped_once(monkeypatch):
    from vllm.v1.core.sched.scheduler import Scheduler

    monkeypatch.setattr(Scheduler, "__init__", Scheduler.__init__)
    monkeypatch.setattr(SchedulerConfig, "get_scheduler_cls", lambda config: Scheduler)
    monkeypatch.setattr(SchedulerConfig, "pad_num_reserved", None, raising=False)
    reserved_blocks.patch_scheduler(lambda config, block_size: 1)
    first = SchedulerConfig.pad_num_reserved
    reserved_blocks.patch_scheduler(lambda config, block_size: 2)
    assert SchedulerConfig.pad_num_reserved is first
    assert first(None, BLOCK) == 1
    for _ in range(2):
        assert SchedulerConfig.get_scheduler_cls(None) is Scheduler
    assert Scheduler.__init__.pad_wrappers == (reserved_blocks._reserve,)


def test_vllms_own_config_of_a_cache_can_be_copied_with_fewer(reserve):
    from vllm.v1.kv_cache_interface import KVCacheConfig

    reserve(7)
    cache = KVCacheConfig(num_blocks=50, kv_cache_tensors=[], kv_cache_groups=groups(BLOCK))
    told = reserved_blocks._without_reserved(vllm_config(), cache)
    assert dataclasses.replace(told, num_blocks=50) == cache


def test_a_model_without_attention_has_no_blocks_to_give(reserve):
    reserve(3)
    empty = CacheConfig(1, [])
    assert reserved_blocks._without_reserved(vllm_config(), empty) is empty
