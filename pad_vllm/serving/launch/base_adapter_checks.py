"""Checks of `pad-vllm check` on a base and an adapter: what each engine needs of the two.

In: a ServedPair. Out: of each check a sentence on what was found, or a ValueError with the way out. The
checks call the functions that also refuse at start-up, so that both say the same. They read the base's
config, its tokenizer and samples of its weights, and load no model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.backbone.backbone import Backbone, require_same_backbone
from pad_vllm.adapter.backbone.weight_fingerprint import local_checkpoint
from pad_vllm.adapter.shape_checks import (
    attention_kinds,
    require_even_attention_split,
    require_lora_shapes,
    require_prefix_shapes,
)
from pad_vllm.config import PADConfig
from pad_vllm.serving.launch.installed_vllm_checks import require_vllm_imports
from pad_vllm.serving.start.forkable_bases import require_forkable_architecture
from pad_vllm.serving.start.quantized_bases import (
    require_forkable_method,
    require_plain_lm_head,
    stored_quant_method,
    stored_quantization,
)
from pad_vllm.wording import listed


@dataclass(frozen=True)
class ServedPair:
    """A base and the adapter that is to guide it."""

    base: str
    """Folder or hub name."""

    base_config: Any
    """Of the base, from Transformers."""

    adapter: Adapter

    backbone: str
    """Of the reward model, folder or hub name; empty for the one that the adapter names."""

    @property
    def served(self) -> Backbone:
        """The base's shape, without a fingerprint of its weights."""
        return Backbone.from_hf_config(self.base_config, name=self.base)

    @property
    def reward_settings(self) -> PADConfig:
        """Settings that run the adapter with a reward model beside the base."""
        return PADConfig(adapter=str(self.adapter.path), engine="resident", backbone=self.backbone)


def describe_adapter(adapter: Adapter) -> str:
    """Its dimensions, backbone and fork."""
    config = adapter.config
    layers = config.backbone.num_layers
    fork = f"forked at layer {config.fork_layer} of {layers}"
    if config.heads_only:
        fork = f"heads only, on all {layers} layers"
    optional = {"constants": adapter.head_C is not None, "gates": config.gated}
    parts = [name for name, exists in optional.items() if exists]
    beside = f", with {' and '.join(parts)}" if parts else ""
    dimensions = listed(config.dimensions)
    return f"{dimensions}; trained on {config.backbone.name}, {fork}{beside}"


def read_base_config(base: str) -> Any:
    """The base's config from Transformers, read without running code of the checkpoint.

    Raises ValueError where there is no config, or one that Transformers does not know.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{base} has no config that Transformers reads ({reason}). Accepted: a name of "
            "`pad-vllm models`, a checkpoint's folder, a hub name. Check the name, or fetch it."
        ) from None


def check_defaults(pair: ServedPair) -> str:
    """The adapter's defaults, which every engine limits by `max_beta` and `max_top_k`."""
    require_vllm_imports()
    from pad_vllm.serving.start import served_adapters

    limits = served_adapters.served_limits(pair.reward_settings)
    return f"beta {limits.beta:g} and {limits.top_k} candidates"


def _check_architecture(pair: ServedPair) -> str:
    require_vllm_imports()
    names = pair.base_config.architectures or ()
    if pair.adapter.config.heads_only and names:
        return f"{listed(names)} need not be forked; its logits are checked when the engine starts"
    require_forkable_architecture(names, pair.base)
    return f"{listed(names)} can be forked"


def _check_shapes(pair: ServedPair) -> str:
    served = pair.served
    require_same_backbone(pair.adapter.config.backbone, served)
    require_lora_shapes(pair.adapter, pair.base_config)
    require_prefix_shapes(pair.adapter, pair.base_config)
    return f"H {served.hidden_size}, {served.num_layers} layers, V {served.vocab_size}"


def _check_fork_layer(pair: ServedPair) -> str:
    config = pair.adapter.config
    kinds = attention_kinds(pair.base_config)
    if config.prefixes is not None:
        require_even_attention_split(kinds, config.prefixes.fork_layer)
        above = kinds[config.prefixes.fork_layer :]
        return (
            f"with --instructions the top {len(above)} of {len(kinds)} layers run twice, for the learned "
            f"prefixes {listed(config.prefixes.digests)}; without it no layer does"
        )
    if config.heads_only:
        return "no layer runs twice"
    require_even_attention_split(kinds, config.fork_layer)
    return f"the top {len(kinds) - config.fork_layer} of {len(kinds)} layers run twice"


def _check_weights(pair: ServedPair) -> str:
    folder = local_checkpoint(pair.base)
    # Of a hub's model, the cache may hold no more than the config.
    if folder is None or not (Path(pair.base).is_dir() or list(folder.glob("*.safetensors"))):
        return "not on this machine, so not compared; they are compared when the engine starts"
    served = pair.served.with_weights(folder)
    warnings = require_same_backbone(
        pair.adapter.config.backbone, served, quant_method=stored_quant_method(pair.base_config)
    )
    same = f"those the adapter was trained on, {str(served.fingerprint)[:19]}..."
    return "; ".join(warnings) or same


def _check_quantization(pair: ServedPair) -> str:
    method = stored_quant_method(pair.base_config)
    if not method:
        return "none"
    if pair.adapter.config.heads_only:
        return f"{method}; no layer is forked"
    require_forkable_method(method)
    return (
        f"{method}; whether its rows are computed independently of each other is checked when the engine "
        "starts"
    )


def _check_lm_head(pair: ServedPair) -> str:
    quantization = stored_quantization(pair.base_config)
    require_plain_lm_head(quantization, pair.base)
    return "checked when the engine starts" if quantization else "lm_head is a plain matrix"


def _check_reward_model(pair: ServedPair) -> str:
    from pad_vllm.engines.reward_model.scorer_loader import (
        require_reward_backbone,
        reward_backbone_name,
    )

    pad = pair.reward_settings
    warnings = require_reward_backbone(pad, pair.adapter, weights=False)
    return "; ".join([f"its own, {reward_backbone_name(pad, pair.adapter.config)}", *warnings])


def _check_tokenizers(pair: ServedPair) -> str:
    from transformers import AutoTokenizer

    from pad_vllm.engines.reward_model.scorer_loader import reward_tokenizer
    from pad_vllm.text.token_alignment import TokenAligner

    base = AutoTokenizer.from_pretrained(pair.base, trust_remote_code=False)
    persrm = reward_tokenizer(pair.reward_settings, pair.adapter.config)
    if TokenAligner(base, persrm).same_tokens:
        return "the same: token ids are passed through"
    template = "through its chat template" if base.chat_template else "as one user turn"
    return (
        f"two: the base's text is read {template}, and its end is encoded again as the answer grows"
    )


PairCheck = Callable[[ServedPair], str]

SHARED_CHECKS: tuple[tuple[str, PairCheck], ...] = (
    ("architecture", _check_architecture),
    ("shapes", _check_shapes),
    ("fork layer", _check_fork_layer),
    ("weights", _check_weights),
    ("quantisation", _check_quantization),
    ("lm_head", _check_lm_head),
)
"""Name of a row -> its check; the shared engine needs them."""

RESIDENT_CHECKS: tuple[tuple[str, PairCheck], ...] = (
    ("reward model", _check_reward_model),
    ("tokenizers", _check_tokenizers),
)
"""The same for `resident`, and for `ray`, which runs the resident engine in its actors."""
