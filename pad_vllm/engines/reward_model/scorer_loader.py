"""Makes the scorer that PADConfig describes, from the adapter and its backbone's checkpoint.

In: settings, a type, a device. Out: a RewardScorer; or a ValueError before any weight is read, where the
backbone is not the adapter's. Runs in vLLM's worker and in Ray actors, and imports no vLLM.
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

_TEXT_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
_WEIGHT_FILES = ("*.safetensors",)
_IGNORED_FILES = ["*/*", "consolidated*"]  # other formats of the same weights


def reward_backbone_name(pad: PADConfig, adapter: AdapterConfig) -> str:
    """Folder or hub name of the reward model's backbone: the operator's choice, else the adapter's."""
    return resolve_local_base(pad.backbone or adapter.backbone.name)


def reward_checkpoint(pad: PADConfig, adapter: AdapterConfig, *, weights: bool) -> Path:
    """The folder of the reward model's backbone on this machine.

    A backbone that the operator names may be fetched from the hub. One that only the adapter names must be on
    this machine already, since an adapter may come from anybody.

    Args:
        pad: the server's settings.
        adapter: the adapter's manifest.
        weights: fetch the weights too, not only config and tokenizer.

    Raises:
        ValueError: there is no such folder, and it cannot or may not be fetched.
    """
    name = reward_backbone_name(pad, adapter)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if pad.backbone:
        return _fetch_snapshot(name, _TEXT_FILES + _WEIGHT_FILES if weights else _TEXT_FILES)
    cached = local_checkpoint(name)
    if cached is None:
        raise ValueError(
            f"the reward model's backbone {name!r}, named by the adapter, is not on this machine, and "
            "only what additional_config names is fetched. If you trust it: "
            f"--additional-config.pad.backbone {name}"
        )
    return cached


@cache
def _fetch_snapshot(name_at_revision: str, files: tuple[str, ...]) -> Path:
    """Cached, so that the hub is asked once a process: every check and the tokenizer call this."""
    from huggingface_hub import snapshot_download

    name, _, revision = name_at_revision.partition("@")
    pinned = revision or None
    try:
        return Path(
            snapshot_download(
                name, revision=pinned, allow_patterns=list(files), ignore_patterns=_IGNORED_FILES
            )
        )
    except (OSError, ValueError) as error:
        cached = local_checkpoint(name, pinned)
        if cached is None:
            raise ValueError(
                f"the reward model's backbone {name_at_revision!r}, named by "
                f"additional_config['pad']['backbone'], is no folder and cannot be fetched "
                f"({_first_line(error)}). Name its folder or hub name, NAME or NAME@REVISION: "
                "--additional-config.pad.backbone PATH"
            ) from None
        return cached


def require_reward_backbone(pad: PADConfig, adapter: Adapter, *, weights: bool = True) -> list[str]:
    """Check the reward model's backbone by its config and fingerprint; loads no weights.

    Args:
        pad: the server's settings.
        adapter: names the backbone that it was trained on.
        weights: whether this process will run the model. Another process neither fetches a hub's weights nor
            needs them.

    Returns:
        Warnings.

    Raises:
        ValueError: the backbone is not the adapter's, or its model family is not supported.
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
    """Check that the reward model can read texts as long as the base's.

    Args:
        pad: the server's settings; `cache_gib` counts.
        adapter: the adapter's manifest.
        length: the base's max_model_len.
        dtype: type in which the reward model will run.

    Raises:
        ValueError: texts may outgrow the reward model.
    """
    name = reward_backbone_name(pad, adapter)
    config = _config(name, reward_checkpoint(pad, adapter, weights=False))
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
    failure_log: FailureLog,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> RewardScorer:
    """Load the reward model and allocate its KV cache. Call `require_reward_backbone` before.

    Args:
        pad: the server's settings.
        adapter: the PersRM.
        failure_log: counts the rows that do not fit into the cache.
        dtype: type of the model and its cache.
        device: where it runs.

    Raises:
        ValueError: the backbone is not on this machine.
        DecoderError: the model cannot run, or the cache is too small.
    """
    decoder = ForkedDecoder(
        reward_checkpoint(pad, adapter.config, weights=True),
        adapter,
        dtype=dtype,
        device=device,
        cache_bytes=cache_capacity.cache_bytes(pad.cache_gib),
    )
    exact = pad.candidates == "exact"
    return RewardScorer(decoder, adapter, failure_log, exact=exact, budget=pad.pass_tokens)
