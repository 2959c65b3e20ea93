"""The adapters of one engine: a single one, or several whose heads stand side by side.

In: PAD's settings. Out: the Adapter that the engine runs, and what requests may ask of each. With several, a
request's weights are those of all dimensions, zeros but for its own adapter's: one batch, one rule. More may
come and go while the server runs: roster.py in the front end, arrivals.py in the workers.
"""

from __future__ import annotations

from dataclasses import replace

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.combine_adapters import AdapterPart, merge_adapters
from pad_vllm.adapter.manifest import AdapterConfig, read_config
from pad_vllm.config import PADConfig
from pad_vllm.params import RequestLimits

ADD_ADAPTER_RPC, DROP_ADAPTER_RPC = "pad_add_adapter", "pad_drop_adapter"
"""Names by which the front end calls worker/runtime_adapter_updates.py."""


def load_served_adapters(pad: PADConfig) -> Adapter:
    """Raises AdapterError where one is broken, or where several are not heads alone on one base."""
    first = load_adapter(pad.adapter)
    if not pad.adapters:
        return first
    every = [first, *map(load_adapter, pad.adapters.values())]
    return merge_adapters(
        [AdapterPart(_renamed(one, number), {}) for number, one in enumerate(every)]
    )


def _renamed(adapter: Adapter, number: int) -> Adapter:
    """Its dimensions told from those of the other adapters."""
    names = tuple(f"adapter{number}_{name}" for name in adapter.config.dimensions)
    return replace(adapter, config=replace(adapter.config, dimensions=names))


def served_limits(pad: PADConfig) -> RequestLimits:
    """What requests may ask for. Raises ValueError where an adapter's defaults exceed it."""
    first, *others = map(read_config, (pad.adapter, *pad.adapters.values()))
    sizes = [len(config.dimensions) for config in (first, *others)]
    found = [
        replace(
            adapter_limits(config, pad.max_beta, pad.max_top_k),
            engine=pad.engine,
            first_dimension=sum(sizes[:number]),
        )
        for number, config in enumerate((first, *others))
    ]
    return replace(found[0], other_adapters=dict(zip(pad.adapters, found[1:], strict=True)))


def adapter_limits(adapter: AdapterConfig, max_beta: float, max_top_k: int) -> RequestLimits:
    """An adapter's names and defaults, served alone, within these limits. Raises ValueError as `limits`."""
    return RequestLimits(
        dimensions=adapter.dimensions,
        beta=adapter.beta,
        top_k=adapter.top_k,
        max_beta=max_beta,
        max_top_k=max_top_k,
        no_repeat=adapter.no_repeat,
        min_p=adapter.min_p,
    )
