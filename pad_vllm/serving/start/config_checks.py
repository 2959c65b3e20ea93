"""PAD's settings, and the checks of vLLM's config against the adapter: backbone, tokenizers.

In: a VllmConfig and, for some, PAD's settings and the loaded adapter. Out: settings, a TokenAligner,
or a ValueError that says what to do. The front end runs these checks for an early, readable refusal; the
worker runs them again when it has loaded the weights. No function here loads a model.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.backbone.backbone import Backbone, require_same_backbone
from pad_vllm.adapter.backbone.weight_fingerprint import local_checkpoint
from pad_vllm.adapter.manifest import read_config
from pad_vllm.config import PADConfig
from pad_vllm.engines.reward_model.scorer_loader import (
    require_reward_backbone,
    require_text_length,
    reward_tokenizer,
)
from pad_vllm.serving.start import eos_tokens, instruction_settings
from pad_vllm.serving.start.forkable_bases import (
    require_fork_in_last_stage,
    require_forkable_architecture,
    require_no_kv_connector,
    require_no_lora,
    require_no_offloading,
    require_plain_kv_cache,
)
from pad_vllm.serving.start.pad_activation import require_pad_switched_on
from pad_vllm.serving.start.quantized_bases import require_forkable_method, stored_quant_method
from pad_vllm.serving.start.unsupported_configs import require_supported
from pad_vllm.text.chat_template import read_chat_template
from pad_vllm.text.token_alignment import TokenAligner
from pad_vllm.vllm_api.parallel_ranks import last_stage_layers
from pad_vllm.vllm_api.quantization import kv_cache_dtype, quantization_method
from pad_vllm.vllm_api.vllm_names import VllmConfig, init_logger

logger = init_logger(__name__)

_checked_settings: dict[int, PADConfig] = {}
"""id of a VllmConfig -> its settings, as long as that object lives. It is no attribute of the VllmConfig:
vLLM's `replace` of a config fails on attributes that are no fields. VllmConfig has no hash either.
"""


def pad_settings(config: VllmConfig) -> PADConfig:
    """PAD's settings, parsed and checked once for each VllmConfig object of a process.

    A later change of the same object is not noticed; the loader changes only COMPILE_CACHE_KEY, which is no
    setting. Raises ValueError for a config that PAD cannot serve.
    """
    if (checked := _checked_settings.get(id(config))) is not None:
        return checked
    require_pad_switched_on(config)
    pad = PADConfig.from_additional_config(config.additional_config)
    require_supported(config, pad)
    try:
        weakref.finalize(config, _checked_settings.pop, id(config), None)
    except TypeError:  # no weak reference to such an object: its id may be another's later
        return pad
    _checked_settings[id(config)] = pad
    return pad


FOLDER_FORMATS = (
    "auto",
    "fastsafetensors",
    "hf",
    "instanttensor",
    "mistral",
    "npcache",
    "pt",
    "safetensors",
)
"""vLLM's load formats that read weights from the model's folder. Others may have them elsewhere, in an object
store for instance.
"""

ReadEmbedding = Callable[[Backbone, Sequence[float]], tuple[float, ...] | None]
"""See worker/loaded_embedding.py, of a model that is loaded."""


def check_backbone(
    config: VllmConfig,
    pad: PADConfig,
    adapter: Adapter,
    *,
    weights_fetched: bool = True,
    read_embedding: ReadEmbedding | None = None,
) -> None:
    """Compare the adapter's backbone with the model that rewards are computed on, and log warnings.

    That is the served model with `shared`, the reward model's own backbone with the other engines.

    Args:
        config: of the served model.
        pad: its settings.
        adapter: the loaded adapter.
        weights_fetched: whether vLLM has fetched the served model's weights. Before, a hub's model may be
            missing: `shared` then compares the config and what is on disk, and the other engines compare
            nothing.
        read_embedding: reads the served model, where it is loaded: its token embedding is compared where its
            weights are not in its folder.

    Raises:
        ValueError: the backbones differ, the base cannot be forked, or texts may be longer than the reward
            model reads.
    """
    warnings: list[str] = []
    if pad.engine == "shared":
        warnings = _check_served_backbone(
            config, pad, adapter, read_embedding, weights_fetched=weights_fetched
        )
    elif weights_fetched:
        warnings = reward_model_warnings(
            pad,
            adapter,
            max_model_len=config.model_config.max_model_len,
            dtype=config.model_config.dtype,
            runs_here=pad.engine == "resident",  # `ray` runs its reward models in other processes
        )
    for warning in warnings if weights_fetched else ():
        logger.warning("%s", warning)


def reward_model_warnings(
    pad: PADConfig, adapter: Adapter, *, max_model_len: int, dtype: Any, runs_here: bool
) -> list[str]:
    """Check the reward model of `resident` or `ray`, and return what should be logged about it.

    Args:
        pad: names the reward model's backbone and the size of its KV cache.
        adapter: the loaded adapter.
        max_model_len: tokens of the longest text that the served model takes.
        dtype: torch.dtype that the reward model runs in, the served model's.
        runs_here: whether this process runs the reward model, and so needs its weights.

    Raises:
        ValueError: the backbone is not the adapter's, or such a text does not fit into its KV cache.
    """
    warnings = require_reward_backbone(pad, adapter, weights=runs_here)
    require_text_length(pad, adapter.config, max_model_len, dtype)
    return warnings


def _check_served_backbone(
    config: VllmConfig,
    pad: PADConfig,
    adapter: Adapter,
    read_embedding: ReadEmbedding | None,
    *,
    weights_fetched: bool,
) -> list[str]:
    layer = instruction_settings.fork_layer(pad, adapter.config)
    if layer < adapter.config.backbone.num_layers:
        _require_forkable(config, layer)
    if pad.instructions:
        instruction_settings.require_instructions_supported(config)
    if not pad.adapter:
        return []
    trained = adapter.config.backbone
    served = _served_backbone(config, pad, weights_needed=weights_fetched)
    sample = trained.embedding_sample
    if served.fingerprint is None and read_embedding and sample and pad.load_format != "dummy":
        served = replace(served, embedding_sample=read_embedding(served, sample))
    return require_same_backbone(
        trained,
        served,
        allow_mismatch=pad.allow_backbone_mismatch,
        # Only what the checkpoint itself says: where vLLM quantises while it loads, the files are as they
        # were, and are compared whole.
        quant_method=stored_quant_method(config.model_config.hf_config),
    )


def _require_forkable(config: VllmConfig, fork_layer: int) -> None:
    model, num_stages = config.model_config, config.parallel_config.pipeline_parallel_size
    if num_stages > 1:
        require_fork_in_last_stage(fork_layer, last_stage_layers(config), num_stages)
    require_forkable_architecture(model.architectures, base=model.model)
    require_no_lora(enabled=config.lora_config is not None)
    require_no_offloading(getattr(config, "offload_config", None))
    require_no_kv_connector(enabled=config.kv_transfer_config is not None)
    require_plain_kv_cache(kv_cache_dtype(config), model.dtype)
    require_forkable_method(quantization_method(config))


def _served_backbone(config: VllmConfig, pad: PADConfig, *, weights_needed: bool) -> Backbone:
    """The served model's shape, and the fingerprint of its weights where they are on disk."""
    model = config.model_config
    served = Backbone.from_hf_config(model.hf_config, name=model.model)
    if pad.load_format == "dummy":
        return served
    folder = local_checkpoint(model.model, model.revision, config.load_config.download_dir)
    if folder is None:
        return served
    needed = weights_needed or Path(model.model).is_dir()
    return served.with_weights(folder, required=needed and pad.load_format in FOLDER_FORMATS)


def make_token_aligner(config: VllmConfig, pad: PADConfig) -> TokenAligner:
    """From the base's tokens to the reward model's. Raises ValueError for tokenizers it cannot align."""
    base = base_tokenizer(config, pad)
    persrm = reward_tokenizer(pad, read_config(pad.adapter))
    return TokenAligner(base, persrm, eos_token_ids=eos_tokens.eos_token_ids(config))


def plain_base_tokenizer(config: VllmConfig) -> Any:
    """The base's tokenizer as its folder has it."""
    from transformers import AutoTokenizer

    model = config.model_config
    return AutoTokenizer.from_pretrained(
        model.tokenizer,
        revision=model.tokenizer_revision,
        trust_remote_code=model.trust_remote_code,
    )


def base_tokenizer(config: VllmConfig, pad: PADConfig) -> Any:
    """The base's tokenizer, with the chat template that it is served with."""
    base = plain_base_tokenizer(config)
    if pad.chat_template:
        setting = "additional_config['pad']['chat_template']"
        base.chat_template = read_chat_template(pad.chat_template, setting)
    return base
