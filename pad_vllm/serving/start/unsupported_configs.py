"""Refuses, by name and with the way out, what PAD cannot serve, before an engine starts.

In: a VllmConfig and PAD's settings. Out: nothing, or a ValueError. The table of refused features is
refused_features.py; what only a fork cannot do stands in forkable_bases.py. It opens no adapter and no model.
"""

from __future__ import annotations

from typing import Any

from pad_vllm.config import PADConfig
from pad_vllm.serving.start.refused_features import REFUSED_BY_ALL, REFUSED_BY_ENGINE
from pad_vllm.vllm_api.vllm_names import VllmConfig
from pad_vllm.wording import listed

DRAFT_METHODS = ("ngram", "ngram_gpu", "draft_model", "eagle", "eagle3", "mtp", "dflash")
"""Methods of speculative decoding that are served; V2 has one n-gram speculator for both names."""


def require_supported(config: VllmConfig, pad: PADConfig) -> None:
    """Raises ValueError for a config that the engine which `pad` names cannot serve."""
    if pad.adapters and pad.engine != "shared":
        raise ValueError(
            f"pad_vllm's {pad.engine} engine does not support several adapters yet; drop "
            f"{listed(pad.adapters)} from additional_config['pad']['adapters'], or use the shared engine."
        )
    if pad.instructions and pad.engine != "shared":
        raise ValueError(
            f"additional_config['pad']['instructions'] is true, and the engine {pad.engine!r}; instructions "
            "are read by 'shared' alone. Leave the engine out, or drop the setting: with a reward model of "
            "its own, pad_preference is part of that model's prompt."
        )
    if pad.adapters and not pad.adapter:
        raise ValueError(
            f"additional_config['pad'] names {listed(pad.adapters)} as further adapters, and no first one. "
            "Name it: 'adapter'."
        )
    if pad.fork_layer is not None and not pad.instructions:
        raise ValueError(
            f"additional_config['pad']['fork_layer'] is {pad.fork_layer}, which is read with 'instructions' "
            "alone; an adapter has a fork layer of its own. Leave it out, or set 'instructions'."
        )
    for feature in REFUSED_BY_ALL:
        if feature.is_used(config):
            raise ValueError(f"pad_vllm does not support {feature.name} yet; {feature.way_out}.")
    for feature in REFUSED_BY_ENGINE[pad.engine]:
        if feature.is_used(config):
            raise ValueError(
                f"pad_vllm's {pad.engine} engine does not support {feature.name} yet; {feature.way_out}."
            )
    _require_plain_format(pad.load_format)
    if pad.reasoning == "unguided" and not getattr(config, "use_v2_model_runner", False):
        raise ValueError(
            "additional_config['pad']['reasoning'] is 'unguided', which pad_vllm supports on vLLM's "
            "V2 runner alone. Use that runner (VLLM_USE_V2_MODEL_RUNNER=1), or leave the setting out."
        )
    _require_tested_drafts(config.speculative_config)


def _require_plain_format(load_format: str) -> None:
    if load_format.strip().lower() == "gguf":
        raise ValueError(
            f"additional_config['pad']['load_format'] is {load_format!r}. pad_vllm does not support GGUF "
            "bases: vLLM has no loader of its own for them, and rewards are read from the rows of an lm_head "
            "that is not packed. Dequantise the base into safetensors, and leave the setting out."
        )


def _require_tested_drafts(speculative_config: Any) -> None:
    if speculative_config is None:
        return
    if speculative_config.method not in DRAFT_METHODS:
        raise ValueError(
            f"pad_vllm does not support speculative decoding by {speculative_config.method!r} yet; accepted: "
            f"{listed(DRAFT_METHODS)}. Set 'method' in --speculative-config to one of these, or drop it."
        )
    if getattr(speculative_config, "enable_adaptive_verification", False):
        raise ValueError(
            "pad_vllm does not support enable_adaptive_verification yet, by which a step verifies fewer "
            "drafts than were scheduled: drop it from --speculative-config."
        )
    rejection = getattr(speculative_config, "rejection_sample_method", "standard")
    if rejection != "standard":
        raise ValueError(
            f"pad_vllm does not support rejection_sample_method {rejection!r} yet; accepted is 'standard', "
            "by which a token is as likely as without drafts: drop it from --speculative-config."
        )
