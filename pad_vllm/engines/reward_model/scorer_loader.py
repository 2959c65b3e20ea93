"""Makes the scorer that PADConfig describes, from the adapter and its backbone's checkpoint.

In: settings, a type, a device. Out: a Scorer; or a ValueError before any weight is read, where the
backbone is not the adapter's. Runs in vLLM's worker and in Ray actors alike, and imports no vLLM.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.backbone.backbone import Backbone, require_same_backbone
from pad_vllm.adapter.backbone.weight_fingerprint import local_checkpoint
from pad_vllm.adapter.manifest import AdapterConfig
from pad_vllm.adapter.shape_checks import require_lora_shapes
from pad_vllm.catalog.name_resolution import resolve_local_base
from pad_vllm.config import PADConfig
from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.engines.reward_model import cache_capacity
from pad_vllm.engines.reward_model.forked_decoder import ForkedDecoder, require_supported_family
from pad_vllm.engines.reward_model.reward_scorer import RewardScorer

_TEXT = ("*.json", "*.jinja", "*.model", "*.txt")
_WEIGHTS = ("*.safetensors",)
_UNREAD = ["*/*", "consolidated*"]  # other formats of the same weights


def reward_backbone_name(pad: PADConfig, adapter: AdapterConfig) -> str:
    """Folder or hub name of the reward model's backbone."""
    return resolve_local_base(pad.backbone or adapter.backbone.name)


def reward_checkpoint(pad: PADConfig, adapter: AdapterConfig, *, weights: bool) -> Path:
    """The backbone's folder on this machine. Raises ValueError where there is none.

    What the operator named may come from the hub, with its weights or without; what an adapter names
    must be here: an adapter may be anybody's.
    """
    name = reward_backbone_name(pad, adapter)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if pad.backbone:
        return _snapshot(name, _TEXT + _WEIGHTS if weights else _TEXT)
    cached = local_checkpoint(name)
    if cached is None:
        raise ValueError(
            f"the reward model's backbone {name!r}, named by the adapter, is not on this machine, and "
            "only what additional_config names is fetched. If you trust it: "
            f"--additional-config.pad.backbone {name}"
        )
    return cached


@cache
def _snapshot(named: str, files: tuple[str, ...]) -> Path:
    """Asked for by every check and by the tokenizer: the hub answers once a process."""
    from huggingface_hub import snapshot_download

    name, _, revision = named.partition("@")
    pinned = revision or None
    try:
        return Path(
            snapshot_download(
                name, revision=pinned, allow_patterns=list(files), ignore_patterns=_UNREAD
            )
        )
    except (OSError, ValueError) as error:
        cached = local_checkpoint(name, pinned)
        if cached is None:
            raise ValueError(
                f"the reward model's backbone {named!r}, named by additional_config['pad']['backbone'], "
                f"is no folder and cannot be fetched ({_first_line(error)}). Name its folder or hub "
                "name, NAME or NAME@REVISION: --additional-config.pad.backbone PATH"
            ) from None
        return cached


def require_reward_backbone(pad: PADConfig, adapter: Adapter, *, weights: bool = True) -> list[str]:
    """Checks the reward model's backbone; returns warnings. Raises ValueError where it is not the adapter's,
    or of a family that is not supported. Reads its config and fingerprint, and loads no weights.

    weights: whether this process will run it. Elsewhere a hub's weights may be missing, and are not
    fetched.
    """
    name = reward_backbone_name(pad, adapter.config)
    folder = reward_checkpoint(pad, adapter.config, weights=weights)
    config = _config(name, folder)
    require_supported_family(config)
    needed = weights or folder == Path(name).expanduser()
    served = Backbone.from_hf_config(config, name=name).with_weights(folder, required=needed)
    warnings = require_same_backbone(
        adapter.config.backbone, served, allow_mismatch=pad.allow_backbone_mismatch
    )
    require_lora_shapes(adapter, config)
    return warnings


def require_text_length(
    pad: PADConfig, adapter: AdapterConfig, length: int, dtype: torch.dtype
) -> None:
    """Raises ValueError where texts of up to `length` tokens outgrow the reward model, run in `dtype`."""
    name, folder = (
        reward_backbone_name(pad, adapter),
        reward_checkpoint(pad, adapter, weights=False),
    )
    config = _config(name, folder)
    cache_capacity.require_capacity(config, adapter.fork_layer, dtype, pad.cache_gib, length)


def _config(name: str, folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the reward model's backbone {name!r} has no config that Transformers reads "
            f"({_first_line(error)}). Name another: --additional-config.pad.backbone PATH"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reward_tokenizer(pad: PADConfig, adapter: AdapterConfig) -> Any:
    """The reward model's tokenizer, with the chat template that the adapter was trained with."""
    from transformers import AutoTokenizer

    folder = reward_checkpoint(pad, adapter, weights=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if adapter.chat_template is not None:
        tokenizer.chat_template = adapter.chat_template
    return tokenizer


def make_reward_scorer(
    pad: PADConfig,
    adapter: Adapter,
    declined: FailureLog,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> RewardScorer:
    """The reward model, its KV cache allocated; `require_reward_backbone` comes before."""
    decoder = ForkedDecoder(
        reward_checkpoint(pad, adapter.config, weights=True),
        adapter,
        dtype=dtype,
        device=device,
        cache_bytes=cache_capacity.cache_bytes(pad.cache_gib),
    )
    exact = pad.candidates == "exact"
    return RewardScorer(decoder, adapter, declined, exact=exact, budget=pad.pass_tokens)
