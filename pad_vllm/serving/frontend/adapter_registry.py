"""The adapters that requests may name, in the front end: they come and go while the server runs.

In: names and folders. Out: the Limits of each, and a place for its dimensions among those of all. A request
holds the Limits it was admitted by for as long as it lives: an adapter that was removed can be named no more,
and its place is free when nobody holds it. Hidden states know nothing of heads: the prefix cache stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from weakref import ref

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.combine_adapters import AdapterPart, require_mergeable
from pad_vllm.adapter.manifest import CONFIG_FILE
from pad_vllm.config import PADConfig
from pad_vllm.params import RequestLimits
from pad_vllm.serving.start import served_adapters
from pad_vllm.serving.start.served_adapters import ADD_ADAPTER_RPC, DROP_ADAPTER_RPC
from pad_vllm.vllm_api.patches.outcome_rpc import call_all_workers
from pad_vllm.vllm_api.vllm_names import init_logger
from pad_vllm.wording import listed, short_repr

logger = init_logger(__name__)


class RemovedAdapter(NamedTuple):
    """An adapter that was removed, and may have requests."""

    key: str
    begin: int
    end: int
    limits: ref[RequestLimits]


class AdapterRegistry:
    """Of one front end; there is no other (vLLM)."""

    def __init__(self, pad: PADConfig, *, loras: bool) -> None:
        """loras: whether the server has LoRAs of vLLM's too. Raises ValueError as adapters.limits."""
        self.limits = served_adapters.served_limits(pad)
        self._pad, self._loras = pad, loras
        self._gone: list[RemovedAdapter] = []
        self._changing = asyncio.Lock()

    def has(self, name: str) -> bool:
        """Whether requests may name it."""
        return name in self.limits.other_adapters

    def handles_path(self, path: str) -> bool:
        """Whether there is an adapter of PAD's, or may be nothing else."""
        return not self._loras or (Path(path).expanduser() / CONFIG_FILE).is_file()

    async def load(self, engine: Any, name: str, path: str, *, replacing: bool = False) -> None:
        """Raises ValueError: AdapterError, a name that is taken, a worker that cannot."""
        if self._pad.engine != "shared":
            raise ValueError(
                f"pad_vllm's {self._pad.engine} engine takes no adapters at run time; accepted: the shared "
                "engine. Name another in additional_config['pad']['adapter'] and start again"
            )
        async with self._changing:
            if self.has(name) and not replacing:
                raise ValueError(
                    f"an adapter {short_repr(name)} is served already; accepted: another name, or load_inplace true"
                )
            if await engine.is_sleeping():
                raise ValueError("the server sleeps; accepted: an awake one. Wake it up first")
            adapter = await asyncio.to_thread(self._read, path)
            await self._sweep(engine)
            limits = self.assign_dimensions(name, adapter)
            await self._add(engine, limits, adapter)
            self._close(name)
            self.limits = replace(
                self.limits, other_adapters={**self.limits.other_adapters, name: limits}
            )
        logger.info("PAD: adapter %s, %s, from %s", name, listed(limits.dimensions), path)

    async def unload(self, engine: Any, name: str) -> None:
        """Raises ValueError where no adapter has this name."""
        async with self._changing:
            if not self.has(name):
                raise ValueError(
                    f"no adapter {short_repr(name)}; served: {listed(self.limits.other_adapters)}"
                )
            self._close(name)
            await self._sweep(engine)
        logger.info("PAD: adapter %s is removed", name)

    def assign_dimensions(self, name: str, adapter: Adapter) -> RequestLimits:
        """What it accepts, at the first place that is free. Raises ValueError where its defaults exceed
        the engine's.
        """
        limits = served_adapters.adapter_limits(
            adapter.config, self.limits.max_beta, self.limits.max_top_k
        )
        place, size = 0, len(limits.dimensions)
        for begin, end in self._taken():
            if begin - place >= size:
                break
            place = end
        known = {*self.limits.other_adapters, *(one.key for one in self._gone)}
        known |= {one.worker_key for one in self.limits.other_adapters.values() if one.worker_key}
        key = next(key for number in count(1) if (key := f"{name}#{number}") not in known)
        return replace(limits, engine=self.limits.engine, first_dimension=place, worker_key=key)

    def _read(self, path: str) -> Adapter:
        own, adapter = load_adapter(self._pad.adapter), load_adapter(Path(path).expanduser())
        require_mergeable([AdapterPart(own, {}), AdapterPart(adapter, {})])
        return adapter

    def _taken(self) -> Iterator[tuple[int, int]]:
        """Where dimensions begin and end, in their order."""
        served = (self.limits, *self.limits.other_adapters.values())
        places = [
            (one.first_dimension, one.first_dimension + len(one.dimensions)) for one in served
        ]
        yield from sorted([*places, *((one.begin, one.end) for one in self._gone)])

    def _close(self, name: str) -> None:
        others = dict(self.limits.other_adapters)
        limits = others.pop(name, None)
        self.limits = replace(self.limits, other_adapters=others)
        if limits is not None:
            end = limits.first_dimension + len(limits.dimensions)
            self._gone.append(
                RemovedAdapter(limits.worker_key or name, limits.first_dimension, end, ref(limits))
            )

    async def _sweep(self, engine: Any) -> None:
        """Those that were removed and have no requests leave the workers."""
        for one in [one for one in self._gone if one.limits() is None]:
            self._gone.remove(one)
            await self._drop(engine, one.key, one.begin, one.end - one.begin)

    async def _add(self, engine: Any, limits: RequestLimits, adapter: Adapter) -> None:
        where = (
            limits.worker_key,
            limits.first_dimension,
            str(adapter.path and adapter.path.resolve()),
        )
        told = await call_all_workers(engine, ADD_ADAPTER_RPC, *where, adapter.digest)
        if failed := [said for ranks in told for said in ranks if said is not None]:
            await self._drop(
                engine, str(limits.worker_key), limits.first_dimension, len(limits.dimensions)
            )
            raise ValueError(f"a worker could not load it: {failed[0]}")

    async def _drop(self, engine: Any, key: str, place: int, size: int) -> None:
        left = max(end for _, end in self._taken())
        told = await call_all_workers(engine, DROP_ADAPTER_RPC, key, place, size, left)
        for said in (said for ranks in told for said in ranks if said is not None):
            logger.warning("PAD: a worker keeps the removed adapter %s: %s", key, said)
