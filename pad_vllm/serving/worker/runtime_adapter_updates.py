"""Adapters that come and go while a worker runs: their heads in its engine, their limits in its processor.

In: what the front end calls (roster.py), between two steps. Out: None, or what went wrong as text: nothing
raises in a worker. Every rank of every engine does the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.engines import reward_engine
from pad_vllm.params import RequestLimits
from pad_vllm.serving.start.served_adapters import ADD_ADAPTER_RPC, DROP_ADAPTER_RPC, adapter_limits
from pad_vllm.vllm_api.patches.outcome_rpc import add_worker_method


class AcceptedLimits:
    """What requests to one engine may ask for, as it is now."""

    def __init__(self, limits: RequestLimits) -> None:
        self.limits = limits

    def add(self, key: str, limits: RequestLimits) -> None:
        """By this name in a request."""
        self.limits = replace(
            self.limits, other_adapters={**self.limits.other_adapters, key: limits}
        )

    def drop(self, key: str) -> None:
        """No request has it any more."""
        others = {name: one for name, one in self.limits.other_adapters.items() if name != key}
        self.limits = replace(self.limits, other_adapters=others)


_running: WeakValueDictionary[str, AcceptedLimits] = WeakValueDictionary()


def start(instance_id: str, accepted: AcceptedLimits) -> None:
    """Make them known in this process (`VllmConfig.instance_id`)."""
    _running[instance_id] = accepted
    add_worker_method(ADD_ADAPTER_RPC, add_adapter)
    add_worker_method(DROP_ADAPTER_RPC, remove_adapter)


def add_adapter(instance_id: str, key: str, place: int, path: str, digest: str) -> str | None:
    """The adapter in a folder: its heads from `place` on, for requests that name `key`."""
    try:
        accepted, engine = _running[instance_id], _engine(instance_id)
        adapter = load_adapter(path)
        if adapter.digest != digest:
            return f"adapter {path} changed while it was loaded. Load it again."
        own = accepted.limits
        limits = adapter_limits(adapter.config, own.max_beta, own.max_top_k)
        engine.put(place, adapter.heads)
        accepted.add(key, replace(limits, engine=own.engine, first_dimension=place))
    except Exception as error:  # noqa: BLE001, it would end the server and all its requests
        return f"{type(error).__name__}: {error}"
    return None


def remove_adapter(instance_id: str, key: str, place: int, count: int, left: int) -> str | None:
    """See engines.shared.heads.drop."""
    try:
        _running[instance_id].drop(key)
        _engine(instance_id).drop(place, count, left)
    except Exception as error:  # noqa: BLE001, as above
        return f"{type(error).__name__}: {error}"
    return None


def _engine(instance_id: str) -> Any:
    engine = reward_engine.running_engine(instance_id)
    if not hasattr(engine, "put"):
        raise ValueError("this engine takes no adapters at run time")
    return engine
