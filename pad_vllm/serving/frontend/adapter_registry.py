"""The adapters that requests may name, in the front end; they are added and removed while the server runs.

In: names and folders. Out: each adapter's RequestLimits, with the range of dimensions it has among those of
all adapters. A request holds the RequestLimits it was admitted by until it ends. After an adapter is removed
no new request can name it, and its range of dimensions is free again when its last request has ended. The
prefix cache stays valid: hidden states do not depend on heads.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from weakref import ref

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.combine_adapters import require_stackable
from pad_vllm.adapter.manifest import AdapterConfig
from pad_vllm.adapter.shape_checks import require_prefix_shapes
from pad_vllm.config import PADConfig
from pad_vllm.request_limits import RequestLimits
from pad_vllm.serving.frontend.adapter_roots import AdapterRoots, require_small
from pad_vllm.serving.start import instruction_settings, served_adapters
from pad_vllm.serving.start.served_adapters import ADD_ADAPTER_RPC, REMOVE_ADAPTER_RPC
from pad_vllm.vllm_api.patches.outcome_rpc import call_all_workers
from pad_vllm.vllm_api.vllm_names import init_logger
from pad_vllm.wording import listed, short_repr

logger = init_logger(__name__)


class DimensionRange(NamedTuple):
    """Where an adapter's dimensions are among those of all adapters."""

    start: int
    stop: int  # exclusive

    @property
    def size(self) -> int:
        """Number of dimensions."""
        return self.stop - self.start


class RemovedAdapter(NamedTuple):
    """An adapter that no new request can name; requests that did may still run."""

    worker_key: str
    """The name by which the workers know it."""

    dimensions: DimensionRange

    limits: ref[RequestLimits]
    """Dead as soon as no request holds the limits."""


class AdapterRegistry:
    """The adapters of one server. vLLM has one front end where adapters can be added at run time."""

    def __init__(self, pad: PADConfig, served: AdapterConfig, base: Any, *, loras: bool) -> None:
        """Those that the server starts with.

        Args:
            pad: its settings.
            served: config of all of them as one (start/served_adapters.py).
            base: the Transformers config of the base.
            loras: whether the server also has vLLM's own LoRAs.

        Raises:
            ValueError: as `served_limits` does.
        """
        self.limits = served_adapters.served_limits(pad)
        """Of the adapter that guides requests without `pad_adapter`; `other_adapters` has the others."""
        self._pad, self._served, self._base, self._loras = pad, served, base, loras
        self._roots = AdapterRoots(pad)
        self._removed: list[RemovedAdapter] = []
        self._change_lock = asyncio.Lock()

    @property
    def default_name(self) -> str | None:
        """Of the adapter that guides requests without `pad_adapter`: its folder's name. None without one."""
        return Path(self._pad.adapter).name if self._pad.adapter else None

    def has(self, name: str) -> bool:
        """Whether requests may name this adapter."""
        return name in self.limits.other_adapters

    def handles_path(self, path: str) -> bool:
        """Whether a request to load this folder is for PAD: it holds a PAD adapter, or the server has no
        LoRAs of vLLM's, so that it can be meant for nothing else. Outside of the allowed folders nothing is
        looked at.
        """
        return not self._loras or self._roots.has_adapter(path)

    async def load(self, engine: Any, name: str, path: str, *, replacing: bool = False) -> None:
        """Load an adapter on all workers, and let requests name it from then on.

        Args:
            engine: vLLM's EngineClient.
            name: what requests give as `pad_adapter`.
            path: the adapter's folder, on every worker's disk.
            replacing: whether an adapter of this name may be served already, which is then removed.

        Raises:
            ValueError: the engine is not `shared`, the name is taken, the server sleeps, the folder is not
                an allowed one, the adapter is broken or does not fit beside the first one, or a worker cannot
                load it.
        """
        if self._pad.engine != "shared":
            raise ValueError(
                f"pad_vllm's {self._pad.engine} engine takes no adapters at run time; accepted: the shared "
                "engine. Name another in additional_config['pad']['adapter'] and start again"
            )
        if not self._pad.adapter:
            raise ValueError(
                "this server has no adapter, only instructions, and takes none at run time; accepted: a "
                "server that was started with one. Start it with --adapter"
            )
        async with self._change_lock:
            if self.has(name) and not replacing:
                raise ValueError(
                    f"an adapter {short_repr(name)} is served already; accepted: another name, or "
                    "load_inplace true"
                )
            if await engine.is_sleeping():
                raise ValueError("the server sleeps; accepted: an awake one. Wake it up first")
            with self._roots.adapter_folder(path) as folder:
                adapter = await asyncio.to_thread(self._load_mergeable, folder)
                await self._free_unused(engine)
                limits = self._assign_dimensions(name, adapter)
                await self._add_on_workers(engine, limits, adapter)
            self._stop_serving(name)
            self._set_others({**self.limits.other_adapters, name: limits})
        logger.info(
            "PAD: adapter %s, %s, from %s",
            short_repr(name),
            listed(limits.dimensions),
            short_repr(path),
        )

    async def unload(self, engine: Any, name: str) -> None:
        """Refuse new requests that name the adapter. Raises ValueError where no adapter has this name."""
        async with self._change_lock:
            if not self.has(name):
                raise ValueError(
                    f"no adapter {short_repr(name)}; served: {listed(self.limits.other_adapters)}"
                )
            self._stop_serving(name)
            await self._free_unused(engine)
        logger.info("PAD: adapter %s is removed", short_repr(name))

    def _load_mergeable(self, folder: Path) -> Adapter:
        self._roots.require_own_files(folder)
        require_small(folder)
        pad, adapter = self._pad, load_adapter(folder)
        config = served_adapters.unmerged(adapter).config if self._loras else adapter.config
        require_stackable(config, folder, self._served, pad.adapter)
        require_prefix_shapes(adapter, self._base)
        if pad.instructions and adapter.config.prefixes is not None:
            served_layer = instruction_settings.fork_layer(pad, self._served)
            instruction_settings.require_prefixes_fit(pad, adapter.config.prefixes, served_layer)
        return adapter

    def _assign_dimensions(self, name: str, adapter: Adapter) -> RequestLimits:
        """The new adapter's limits, at the first free range that is large enough and with a key that no other
        adapter has. Raises ValueError where its defaults exceed the server's maxima.
        """
        limits = served_adapters.adapter_limits(
            adapter.config, self.limits.max_beta, self.limits.max_top_k
        )
        first_dimension = 0
        for used in self._used_ranges():
            if used.start - first_dimension >= len(limits.dimensions):
                break
            first_dimension = used.stop
        return replace(
            limits,
            engine=self.limits.engine,
            instructions=self.limits.instructions,
            first_dimension=first_dimension,
            worker_key=self._unused_key(name),
        )

    def _unused_key(self, name: str) -> str:
        """`NAME#1`, or the next number that is free: an adapter of this name may still have requests."""
        others = self.limits.other_adapters
        used = {*others, *(removed.worker_key for removed in self._removed)}
        used |= {limits.worker_key for limits in others.values() if limits.worker_key}
        return next(key for number in count(1) if (key := f"{name}#{number}") not in used)

    def _used_ranges(self) -> list[DimensionRange]:
        """Of the adapters that are served or have requests, in the order of the dimensions."""
        served = (self.limits, *self.limits.other_adapters.values())
        return sorted([*map(_dimension_range, served), *(one.dimensions for one in self._removed)])

    def _stop_serving(self, name: str) -> None:
        """Requests can no longer name the adapter, if there is one."""
        others = dict(self.limits.other_adapters)
        limits = others.pop(name, None)
        self._set_others(others)
        if limits is not None:
            key = limits.worker_key or name
            self._removed.append(RemovedAdapter(key, _dimension_range(limits), ref(limits)))

    def _set_others(self, others: dict[str, RequestLimits]) -> None:
        self.limits = replace(self.limits, other_adapters=others)

    async def _free_unused(self, engine: Any) -> None:
        """Drop removed adapters that have no request any more from the workers."""
        for removed in [one for one in self._removed if one.limits() is None]:
            self._removed.remove(removed)
            await self._remove_on_workers(engine, removed.worker_key, removed.dimensions)

    async def _add_on_workers(self, engine: Any, limits: RequestLimits, adapter: Adapter) -> None:
        key, dimensions = str(limits.worker_key), _dimension_range(limits)
        folder = str(adapter.path and adapter.path.resolve())
        failures = await _call_workers(
            engine, ADD_ADAPTER_RPC, key, dimensions.start, folder, adapter.digest
        )
        if failures:
            await self._remove_on_workers(engine, key, dimensions)
            raise ValueError(f"a worker could not load it: {failures[0]}")

    async def _remove_on_workers(self, engine: Any, key: str, dimensions: DimensionRange) -> None:
        num_dimensions = max(used.stop for used in self._used_ranges())
        failures = await _call_workers(
            engine, REMOVE_ADAPTER_RPC, key, dimensions.start, dimensions.size, num_dimensions
        )
        for message in failures:
            logger.warning(
                "PAD: a worker keeps the removed adapter %s: %s", short_repr(key), message
            )


def _dimension_range(limits: RequestLimits) -> DimensionRange:
    start = limits.first_dimension
    return DimensionRange(start, start + len(limits.dimensions))


async def _call_workers(engine: Any, method: str, *args: Any) -> list[str]:
    """Call a method of worker/runtime_adapter_updates.py on all workers; returns the messages of failures."""
    results = await call_all_workers(engine, method, *args)
    return [message for ranks in results for message in ranks if message is not None]
