"""What a server with instructions is set to: fork layer, limits, reserved KV blocks; and what it refuses.

In: PAD's settings, an adapter's config, a VllmConfig. Out: numbers, or a ValueError with the way out.
"""

from __future__ import annotations

from typing import Any

from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.manifest import AdapterConfig, PrefixConfig
from pad_vllm.config import PADConfig
from pad_vllm.engines.shared.instruction_stream import InstructionLimits
from pad_vllm.vllm_api.vllm_names import VllmConfig

DEFAULT_DEPTH = 0.4
"""The share of a base's layers above which an instruction enters, measured on a Llama and two Qwen2
(benchmarks/README.md).
"""


def default_fork_layer(backbone: Backbone) -> int:
    """The fork layer of a server that names none."""
    return round(DEFAULT_DEPTH * backbone.num_layers)


def fork_layer(pad: PADConfig, adapter: AdapterConfig) -> int:
    """The first layer that runs twice; the number of layers where none does.

    Raises ValueError where the setting and the base or the adapter do not go together.
    """
    num_layers = adapter.backbone.num_layers
    if not pad.instructions:
        return adapter.fork_layer
    if not adapter.heads_only:
        raise ValueError(
            f"pad_vllm takes instructions beside heads only, and this adapter has a trunk from layer "
            f"{adapter.fork_layer} up, whose reward stream is its own. Serve an adapter with heads only, or "
            "none, or drop --instructions."
        )
    if adapter.prefixes is not None:
        layer = adapter.prefixes.fork_layer if pad.fork_layer is None else pad.fork_layer
        require_prefixes_fit(pad, adapter.prefixes, layer)
        return layer
    if pad.fork_layer is None:
        return default_fork_layer(adapter.backbone)
    if pad.fork_layer >= num_layers:
        raise ValueError(
            f"additional_config['pad']['fork_layer'] is {pad.fork_layer}; accepted with this base: 0 to "
            f"{num_layers - 1}. Leave it out for "
            f"{default_fork_layer(adapter.backbone)}."
        )
    return pad.fork_layer


def require_prefixes_fit(pad: PADConfig, prefixes: PrefixConfig, served_fork_layer: int) -> None:
    """Raises ValueError where a server with instructions that forks at a layer cannot serve an adapter's
    learned prefixes.
    """
    if served_fork_layer != prefixes.fork_layer:
        raise ValueError(
            f"the adapter's prefixes were learned for fork layer {prefixes.fork_layer}, and this server's is "
            f"{served_fork_layer}; accepted: the same one. Start the server with --fork-layer "
            f"{prefixes.fork_layer}, or train the prefixes with --prefix-fork-layer {served_fork_layer}."
        )
    if prefixes.num_tokens > pad.max_instruction_tokens:
        raise ValueError(
            f"the adapter's learned prefixes have {prefixes.num_tokens} tokens, and additional_config['pad']"
            f"['max_instruction_tokens'] is {pad.max_instruction_tokens}; raise it to {prefixes.num_tokens} "
            "at least."
        )


def require_instructions_supported(config: VllmConfig) -> None:
    """Raises ValueError for what instructions were not built for."""
    parallel = config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        raise ValueError(
            "pad_vllm does not read instructions with pipeline parallelism yet: they go through all layers; "
            "drop --pipeline-parallel-size or --instructions."
        )
    scheduler = getattr(config.scheduler_config, "scheduler_cls", None)
    if scheduler is not None:
        raise ValueError(
            "pad_vllm reserves KV blocks of vLLM's own schedulers for instructions, and this is "
            f"{scheduler}; drop --scheduler-cls or --instructions."
        )
    if getattr(config.model_config, "enable_sleep_mode", False):
        raise ValueError(
            "pad_vllm does not keep instructions while a server sleeps, which frees the KV cache; drop "
            "--enable-sleep-mode or --instructions."
        )
    if getattr(config.model_config, "uses_mrope", False):
        raise ValueError(
            "pad_vllm does not read instructions with positions of several axes (M-RoPE) yet; drop "
            "--instructions, or serve a base with text positions."
        )
    if "longrope" in _rope_types(config.model_config):
        raise ValueError(
            "pad_vllm does not read instructions with LongRoPE yet, whose rotations vLLM keeps in another "
            "table; drop --instructions."
        )


def _rope_types(model_config: Any) -> set[object]:
    """Kinds of rotary embedding, as the base's config names them, which may have one for each layer type."""
    text_config = getattr(model_config, "hf_text_config", None)
    found: set[object] = set()
    for name in ("rope_parameters", "rope_scaling"):
        rope = getattr(text_config, name, None) or {}
        for one in (rope, *rope.values()):
            if isinstance(one, dict):
                found |= {one.get("rope_type"), one.get("type")}
    return found - {None}


def instruction_limits(pad: PADConfig) -> InstructionLimits:
    """How many instructions there may be at once, and how long one is at most."""
    return InstructionLimits(pad.max_instructions, pad.max_instruction_tokens)


def num_reserved_blocks(pad: PADConfig, block_size: int) -> int:
    """KV blocks that an engine with these settings keeps from its scheduler; 0 without instructions."""
    return instruction_limits(pad).num_reserved_blocks(block_size) if pad.instructions else 0
