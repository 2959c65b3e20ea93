"""Makes the scorer that PADConfig describes, from the adapter and its backbone's checkpoint.

In: settings, a type, a device. Out: a Scorer; or a ValueError before any weight is read, where the
backbone is not the adapter's. Runs in vLLM's worker and in Ray actors alike, and imports no vLLM.
"""

from __future__ import annotations

from typing import Any

import torch

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.fingerprint import fingerprint, local_checkpoint
from pad_vllm.adapter.manifest import AdapterConfig, Backbone, require_backbone
from pad_vllm.adapter.shapes import require_shapes
from pad_vllm.config import PADConfig
from pad_vllm.demo.names import local_base
from pad_vllm.engines.reward_model.decoder import ForkedDecoder, require_known
from pad_vllm.engines.reward_model.scorer import Scorer


def backbone_of(pad: PADConfig, adapter: AdapterConfig) -> str:
    """Folder or hub name of the reward model's backbone."""
    return local_base(pad.backbone or adapter.backbone.name)


def require_reward_backbone(pad: PADConfig, adapter: Adapter) -> list[str]:
    """Checks the reward model's backbone; returns warnings. Raises ValueError where it is not the adapter's,
    or of a family that is not supported. Reads its config and fingerprint, and loads no weights.
    """
    path = backbone_of(pad, adapter.config)
    config = _config(path, pad)
    require_known(config)
    folder = local_checkpoint(path)
    weights = folder is not None and any(folder.glob("*.safetensors"))
    mark = fingerprint(folder) if folder is not None and weights else None
    served = Backbone.from_hf_config(config, name=path, fingerprint=mark)
    warnings = require_backbone(adapter.config, served, allow_mismatch=pad.allow_backbone_mismatch)
    require_shapes(adapter, config)
    return warnings


def _config(path: str, pad: PADConfig) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        said = "additional_config['pad']['backbone']" if pad.backbone else "the adapter"
        raise ValueError(
            f"the reward model's backbone {path!r}, named by {said}, has no config that "
            f"Transformers reads ({str(error).strip().splitlines()[0]}). Name its folder or hub "
            """name: --additional-config.pad.backbone PATH"""
        ) from None


def tokenizer_of(pad: PADConfig, adapter: AdapterConfig) -> Any:
    """The reward model's tokenizer, with the chat template that the adapter was trained with."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(backbone_of(pad, adapter))
    if adapter.chat_template is not None:
        tokenizer.chat_template = adapter.chat_template
    return tokenizer


def make_scorer(
    pad: PADConfig, adapter: Adapter, *, dtype: torch.dtype, device: torch.device
) -> Scorer:
    """The reward model, its KV cache allocated; `require_reward_backbone` comes before."""
    decoder = ForkedDecoder(
        backbone_of(pad, adapter.config),
        adapter,
        dtype=dtype,
        device=device,
        cache_bytes=int(pad.cache_gib * 2**30),
    )
    exact = pad.candidates == "exact"
    return Scorer(decoder, adapter, exact=exact, budget=pad.pass_tokens)
