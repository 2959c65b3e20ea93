"""Adapters that are loaded and removed while a worker runs: heads in its engine, limits in its processor.

In: what the front end calls between two steps (frontend/adapter_registry.py), on every rank of every engine.
Out: None, or an error as text: an exception would end the worker.
"""

from __future__ import annotations

from dataclasses import replace

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.engines.shared.shared_rewards import SharedRewards
from pad_vllm.serving.start.served_adapters import (
    ADD_ADAPTER_RPC,
    REMOVE_ADAPTER_RPC,
    adapter_limits,
)
from pad_vllm.serving.worker.accepted_limits import AcceptedLimits
from pad_vllm.serving.worker.instance import find_instance
from pad_vllm.vllm_api.patches.outcome_rpc import add_worker_method


def add_adapter_methods() -> None:
    """Give vLLM's worker class the two methods that the front end calls."""
    add_worker_method(ADD_ADAPTER_RPC, add_adapter)
    add_worker_method(REMOVE_ADAPTER_RPC, remove_adapter)


def add_adapter(
    instance_id: str, worker_key: str, first_dimension: int, path: str, digest: str
) -> str | None:
    """Load an adapter into the engine, for requests that name it.

    Args:
        instance_id: `VllmConfig.instance_id`.
        worker_key: the key by which the workers know the adapter.
        first_dimension: index of its first dimension among those of all served adapters.
        path: the adapter's folder.
        digest: of the adapter that the front end checked.

    Returns:
        None, or what went wrong.
    """
    try:
        accepted, engine = _limits_and_engine(instance_id)
        adapter = load_adapter(path)
        if adapter.digest != digest:
            return f"adapter {path} changed while it was loaded. Load it again."
        served = accepted.limits
        limits = adapter_limits(adapter.config, served.max_beta, served.max_top_k)
        engine.add_prefixes(worker_key, adapter.prefixes.values())
        engine.insert_heads(first_dimension, adapter.heads)
        accepted.add(
            worker_key,
            replace(
                limits,
                engine=served.engine,
                instructions=served.instructions,
                first_dimension=first_dimension,
            ),
        )
    except Exception as error:  # noqa: BLE001, it would end the server and all its requests
        return f"{type(error).__name__}: {error}"
    return None


def remove_adapter(
    instance_id: str, worker_key: str, first_dimension: int, count: int, num_used: int
) -> str | None:
    """Remove an adapter that no request in the batch has.

    Args:
        instance_id: `VllmConfig.instance_id`.
        worker_key: the key by which the workers know the adapter.
        first_dimension: index of its first dimension among those of all served adapters.
        count: number of its dimensions.
        num_used: see engines/shared/adapter_heads.py, remove_heads.

    Returns:
        None, or what went wrong.
    """
    try:
        accepted, engine = _limits_and_engine(instance_id)
        accepted.remove(worker_key)
        engine.remove_prefixes(worker_key)
        engine.remove_heads(first_dimension, count, num_used)
    except Exception as error:  # noqa: BLE001, as above
        return f"{type(error).__name__}: {error}"
    return None


def _limits_and_engine(instance_id: str) -> tuple[AcceptedLimits, SharedRewards]:
    """The limits and the engine. Raises ValueError where adapters cannot be loaded at run time."""
    instance = find_instance(instance_id)
    if instance is None or instance.accepted_limits is None:
        raise ValueError("this process has no logits processor of PAD")
    engine = instance.engine
    if not isinstance(engine, SharedRewards):
        raise ValueError("this engine takes no adapters at run time")
    return instance.accepted_limits, engine
