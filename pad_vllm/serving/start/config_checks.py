"""The checks of a config before an engine starts: PAD's settings, the backbone, the tokenizers, end tokens.

Run in the front end for an early, readable refusal, and again in the worker that loads the model.

In: a VllmConfig. Out: PAD's settings and the Reader of its tokens, or a ValueError that says what to do.
It takes a loaded adapter and never loads the model.
"""

from __future__ import annotations

from pathlib import Path

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
from pad_vllm.serving.start.quantized_bases import stored_quant_method
from pad_vllm.serving.start.unsupported_configs import (
    require_fork_in_last_stage,
    require_forkable_base,
    require_pad_switched_on,
    require_supported,
)
from pad_vllm.text.chat_template import read_chat_template
from pad_vllm.text.token_alignment import TokenAligner
from pad_vllm.vllm_api.vllm_names import VllmConfig, init_logger

logger = init_logger(__name__)


def pad_settings(config: VllmConfig) -> PADConfig:
    """PAD's settings. Raises ValueError for a config that PAD cannot serve."""
    require_pad_switched_on(config)
    pad = PADConfig.from_additional_config(config.additional_config)
    require_supported(config, pad)
    return pad


def check_backbone(
    config: VllmConfig, pad: PADConfig, adapter: Adapter, *, weights_fetched: bool = True
) -> None:
    """Raises ValueError where the backbone is not the adapter's, and logs warnings: the served model's with
    `shared`, the reward model's own with the other engines, or where texts may outgrow that.

    fetched: whether vLLM has fetched the weights. Before, a hub's model may be missing: `shared` then
    compares config and what is there, the other engines nothing.
    """
    if pad.engine != "shared":
        if weights_fetched:  # `ray` runs its reward models elsewhere
            for warning in reward_model_warnings(
                config, pad, adapter, runs_here=pad.engine == "resident"
            ):
                logger.warning("%s", warning)
        return
    if not adapter.config.heads_only:
        require_fork_in_last_stage(config, adapter.config.fork_layer)
        require_forkable_base(config)
    warnings = require_same_backbone(
        adapter.config.backbone,
        _served(config, pad, fetched=weights_fetched),
        allow_mismatch=pad.allow_backbone_mismatch,
        # Not what vLLM packs while it loads: the files are then as they were, and are compared whole.
        quant_method=stored_quant_method(config.model_config.hf_config),
    )
    for warning in warnings if weights_fetched else ():
        logger.warning("%s", warning)


def reward_model_warnings(
    config: VllmConfig, pad: PADConfig, adapter: Adapter, *, runs_here: bool
) -> list[str]:
    """Warnings; weights: whether this process will run it."""
    warnings = require_reward_backbone(pad, adapter, weights=runs_here)
    model = config.model_config
    require_text_length(pad, adapter.config, model.max_model_len, model.dtype)
    return warnings


def _served(config: VllmConfig, pad: PADConfig, *, fetched: bool) -> Backbone:
    model = config.model_config
    served = Backbone.from_hf_config(model.hf_config, name=model.model)
    if pad.load_format == "dummy":
        return served
    folder = local_checkpoint(model.model, model.revision, config.load_config.download_dir)
    if folder is None:
        return served
    return served.with_weights(folder, required=fetched or Path(model.model).is_dir())


def token_reader(config: VllmConfig, pad: PADConfig) -> TokenAligner:
    """From the base's tokens to the reward model's. Raises ValueError for tokenizers it cannot follow."""
    from transformers import AutoTokenizer

    model = config.model_config
    base = AutoTokenizer.from_pretrained(
        model.tokenizer,
        revision=model.tokenizer_revision,
        trust_remote_code=model.trust_remote_code,
    )
    if pad.chat_template:
        setting = "additional_config['pad']['chat_template']"
        base.chat_template = read_chat_template(pad.chat_template, setting)
    return TokenAligner(
        base, reward_tokenizer(pad, read_config(pad.adapter)), end_tokens=eos_token_ids(config)
    )


def eos_token_ids(config: VllmConfig) -> list[int]:
    """What ends an answer of the base, by its config and then by its generation config; may be empty."""
    model = config.model_config
    said = (
        getattr(model.hf_text_config, "eos_token_id", None),
        model.try_get_generation_config().get("eos_token_id"),
    )
    known = [ends if isinstance(ends, list | tuple) else [ends] for ends in said]
    return list(dict.fromkeys(end for ends in known for end in ends if isinstance(end, int)))


def required_eos_token_id(config: VllmConfig) -> int:
    """The base's end of sequence, for `"on_failure": "stop"`. Raises ValueError where it has none."""
    ends = eos_token_ids(config)
    if not ends:
        raise ValueError(
            "on_failure is 'stop', and neither the base's config nor its generation config has an "
            "eos_token_id, so nothing ends an answer. Set on_failure to 'unguided', or give the base's "
            "config its eos_token_id."
        )
    return ends[0]
