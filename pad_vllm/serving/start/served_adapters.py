"""The adapters that one engine starts with: a single one, or several whose heads are stacked.

In: PAD's settings. Out: the Adapter that the engine runs, and the RequestLimits of each adapter. With several
adapters the engine has the dimensions of all of them, one adapter after the other; a request has weights for
its own adapter's dimensions and zeros for the others, so that one batch follows one rule. Adapters that are
added or removed while the server runs: frontend/adapter_registry.py and worker/runtime_adapter_updates.py.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from typing import Any

import torch

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.combine_adapters import AdapterPart, merge_adapters
from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.adapter.manifest import (
    FORMAT_2,
    AdapterConfig,
    PrefixConfig,
    read_config,
    taught_sentences,
)
from pad_vllm.adapter.peft_lora import EMPTY_LORA
from pad_vllm.config import PADConfig
from pad_vllm.instruction import LearnedInstruction
from pad_vllm.request_limits import InstructionDefaults, RequestLimits
from pad_vllm.vllm_api import parallel_ranks
from pad_vllm.wording import listed

ADD_ADAPTER_RPC, REMOVE_ADAPTER_RPC = "pad_add_adapter", "pad_drop_adapter"
"""Worker methods that the front end calls by `collective_rpc`: see worker/runtime_adapter_updates.py."""


def load_served_adapters(pad: PADConfig, base: Any = None, *, loras: bool = False) -> Adapter:
    """The adapter, or all of them merged into one; without one, an adapter without dimensions.

    Args:
        pad: PAD's settings.
        base: vLLM's ModelConfig of the base, for a server without adapter.
        loras: whether the server has LoRAs of the base: an adapter that was trained with one merged is then
            one of the base without it.

    Raises:
        AdapterError: one of them is broken, or several are not all heads only on one base.
    """
    if not pad.adapter:
        return _no_adapter(Backbone.from_hf_config(base.hf_config, name="the base"))
    adapters = [load_adapter(path) for path in (pad.adapter, *pad.adapters.values())]
    if loras:
        adapters = [unmerged(adapter) for adapter in adapters]
    if not pad.adapters:
        return adapters[0]
    return merge_adapters(
        [
            AdapterPart(_with_unique_names(adapter, index), {})
            for index, adapter in enumerate(adapters)
        ]
    )


def unmerged(adapter: Adapter) -> Adapter:
    """An adapter as it is served under the LoRA that its training had merged into the base, if any."""
    config = adapter.config
    return replace(adapter, config=replace(config, backbone=config.backbone.unmerged))


def require_one_digest(pad: PADConfig, adapter: Adapter) -> None:
    """Raises AdapterError, on every rank, where ranks have read different files under one path: those of one
    engine may run on several machines. Every rank must call it.

    Args:
        pad: names the paths.
        adapter: what this rank has read there.
    """
    ranks = parallel_ranks.texts_of_all_ranks(f"{adapter.digest} on {platform.node()}")
    if len({text.split()[0] for text in ranks}) > 1:
        paths = listed([pad.adapter, *pad.adapters.values()])
        found = listed(f"rank {rank} {text}" for rank, text in enumerate(ranks))
        raise AdapterError(
            f"the ranks of this engine have read different files from {paths}, by their digest: {found}; "
            "accepted: the same on every rank. Copy one folder to all hosts, or name one that they share."
        )


def _no_adapter(backbone: Backbone) -> Adapter:
    """Heads only, of no dimension: what a server has that only takes instructions."""
    defaults = InstructionDefaults()
    config = AdapterConfig(
        format_version=FORMAT_2,
        backbone=backbone,
        fork_layer=backbone.num_layers,
        dimensions=(),
        head_rank=1,
        beta=defaults.beta,
        top_k=defaults.top_k,
    )
    return Adapter(
        config=config,
        lora=EMPTY_LORA,
        head_A=torch.zeros(0, 1, backbone.hidden_size),
        head_B=torch.zeros(0, backbone.hidden_size, 1),
    )


def _with_unique_names(adapter: Adapter, index: int) -> Adapter:
    """The adapter with its index in the names of dimensions and prefixes: two may have one of one name."""
    stem, learned = f"adapter{index}_", adapter.config.prefixes
    names = tuple(stem + name for name in adapter.config.dimensions)
    renamed = replace(adapter, config=replace(adapter.config, dimensions=names))
    if learned is None:
        return renamed
    prefixes = {stem + name: prefix for name, prefix in adapter.prefixes.items()}
    return renamed.with_prefixes(learned.fork_layer, prefixes)  # strengths are the front end's


def served_limits(pad: PADConfig) -> RequestLimits:
    """What requests may ask for: the first adapter's limits, which hold those of the others by name.

    Reads only pad_config.json of each. Raises ValueError where an adapter's defaults exceed `max_beta` or
    `max_top_k`.
    """
    defaults = InstructionDefaults()
    defaults = replace(
        defaults, beta=min(defaults.beta, pad.max_beta), top_k=min(defaults.top_k, pad.max_top_k)
    )
    instructions = defaults if pad.instructions else None
    if not pad.adapter:
        return RequestLimits(
            dimensions=(),
            beta=defaults.beta,
            top_k=defaults.top_k,
            max_beta=pad.max_beta,
            max_top_k=pad.max_top_k,
            instructions=instructions,
        )
    limits, first_dimension = [], 0
    for config in map(read_config, (pad.adapter, *pad.adapters.values())):
        limits.append(
            replace(
                adapter_limits(config, pad.max_beta, pad.max_top_k),
                engine=pad.engine,
                instructions=instructions,
                first_dimension=first_dimension,
            )
        )
        first_dimension += len(config.dimensions)
    return replace(limits[0], other_adapters=dict(zip(pad.adapters, limits[1:], strict=True)))


def adapter_limits(adapter: AdapterConfig, max_beta: float, max_top_k: int) -> RequestLimits:
    """The limits of an adapter that is served alone by the shared engine.

    Args:
        adapter: its pad_config.json: names of dimensions, and defaults.
        max_beta: largest |pad_beta| that a request may ask for.
        max_top_k: largest pad_top_k that a request may ask for.

    Raises:
        ValueError: the adapter's defaults exceed the maxima.
    """
    return RequestLimits(
        dimensions=adapter.dimensions,
        beta=adapter.beta,
        top_k=adapter.top_k,
        max_beta=max_beta,
        max_top_k=max_top_k,
        no_repeat=adapter.no_repeat,
        min_p=adapter.min_p,
        loop_price=adapter.loop_price,
        prefixes=_learned_instructions(adapter.prefixes),
        prefix_betas=adapter.prefixes.betas if adapter.prefixes else {},
        sentences=taught_sentences(adapter),
        merged_lora=adapter.backbone.merged,
    )


def _learned_instructions(prefixes: PrefixConfig | None) -> dict[str, LearnedInstruction]:
    """Name -> what stands for the learned prefix on the way to the workers."""
    if prefixes is None:
        return {}
    return {
        name: LearnedInstruction(digest, prefixes.num_tokens)
        for name, digest in prefixes.digests.items()
    }
