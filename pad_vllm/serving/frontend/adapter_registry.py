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
from pad_vllm.adapter.combine_adapters import Part, require_alike
from pad_vllm.adapter.manifest import CONFIG_FILE
from pad_vllm.config import PADConfig
from pad_vllm.params import Limits
from pad_vllm.serving.start import served_adapters
from pad_vllm.serving.start.served_adapters import ADD, DROP
from pad_vllm.vllm_api.patches.outcome_rpc import every
from pad_vllm.vllm_api.vllm_names import init_logger
from pad_vllm.wording import listed, show

logger = init_logger(__name__)


class Gone(NamedTuple):
    """An adapter that was removed, and may have requests."""

    key: str
    begin: int
    end: int
    limits: ref[Limits]


class Roster:
    """Of one front end; there is no other (vLLM)."""

    def __init__(self, pad: PADConfig, *, loras: bool) -> None:
        """loras: whether the server has LoRAs of vLLM's too. Raises ValueError as adapters.limits."""
        self.limits = served_adapters.limits(pad)
        self._pad, self._loras = pad, loras
        self._gone: list[Gone] = []
        self._changing = asyncio.Lock()

    def has(self, name: str) -> bool:
        """Whether requests may name it."""
        return name in self.limits.others

    def takes(self, path: str) -> bool:
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
                    f"an adapter {show(name)} is served already; accepted: another name, or load_inplace true"
                )
            if await engine.is_sleeping():
                raise ValueError("the server sleeps; accepted: an awake one. Wake it up first")
            adapter = await asyncio.to_thread(self._read, path)
            await self._sweep(engine)
            limits = self.seated(name, adapter)
            await self._add(engine, limits, adapter)
            self._close(name)
            self.limits = replace(self.limits, others={**self.limits.others, name: limits})
        logger.info("PAD: adapter %s, %s, from %s", name, listed(limits.dimensions), path)

    async def unload(self, engine: Any, name: str) -> None:
        """Raises ValueError where no adapter has this name."""
        async with self._changing:
            if not self.has(name):
                raise ValueError(f"no adapter {show(name)}; served: {listed(self.limits.others)}")
            self._close(name)
            await self._sweep(engine)
        logger.info("PAD: adapter %s is removed", name)

    def seated(self, name: str, adapter: Adapter) -> Limits:
        """What it accepts, at the first place that is free. Raises ValueError where its defaults exceed
        the engine's.
        """
        limits = served_adapters.limits_of(
            adapter.config, self.limits.max_beta, self.limits.max_top_k
        )
        place, size = 0, len(limits.dimensions)
        for begin, end in self._taken():
            if begin - place >= size:
                break
            place = end
        known = {*self.limits.others, *(one.key for one in self._gone)}
        known |= {one.key for one in self.limits.others.values() if one.key}
        key = next(key for number in count(1) if (key := f"{name}#{number}") not in known)
        return replace(limits, engine=self.limits.engine, place=place, key=key)

    def _read(self, path: str) -> Adapter:
        own, adapter = load_adapter(self._pad.adapter), load_adapter(Path(path).expanduser())
        require_alike([Part(own, {}), Part(adapter, {})])
        return adapter

    def _taken(self) -> Iterator[tuple[int, int]]:
        """Where dimensions begin and end, in their order."""
        served = (self.limits, *self.limits.others.values())
        places = [(one.place, one.place + len(one.dimensions)) for one in served]
        yield from sorted([*places, *((one.begin, one.end) for one in self._gone)])

    def _close(self, name: str) -> None:
        others = dict(self.limits.others)
        limits = others.pop(name, None)
        self.limits = replace(self.limits, others=others)
        if limits is not None:
            end = limits.place + len(limits.dimensions)
            self._gone.append(Gone(limits.key or name, limits.place, end, ref(limits)))

    async def _sweep(self, engine: Any) -> None:
        """Those that were removed and have no requests leave the workers."""
        for one in [one for one in self._gone if one.limits() is None]:
            self._gone.remove(one)
            await self._drop(engine, one.key, one.begin, one.end - one.begin)

    async def _add(self, engine: Any, limits: Limits, adapter: Adapter) -> None:
        where = limits.key, limits.place, str(adapter.path and adapter.path.resolve())
        told = await every(engine, ADD, *where, adapter.digest)
        if failed := [said for ranks in told for said in ranks if said is not None]:
            await self._drop(engine, str(limits.key), limits.place, len(limits.dimensions))
            raise ValueError(f"a worker could not load it: {failed[0]}")

    async def _drop(self, engine: Any, key: str, place: int, size: int) -> None:
        left = max(end for _, end in self._taken())
        told = await every(engine, DROP, key, place, size, left)
        for said in (said for ranks in told for said in ranks if said is not None):
            logger.warning("PAD: a worker keeps the removed adapter %s: %s", key, said)
