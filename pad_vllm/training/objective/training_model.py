"""The frozen base and the PersRM on it, as training runs them; the trained tensors as an adapter.

In: a checkpoint's folder and Settings. Out: a PersRM; an Adapter. Knows no data and no loss.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import save_adapter
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.manifest import AdapterConfig, format_version_for
from pad_vllm.adapter.peft_lora import EMPTY_LORA, LoRA
from pad_vllm.opened_base import Attention, DeviceMap, open_model
from pad_vllm.persrm import PersRM, causal_lm_without_weights
from pad_vllm.training.settings import Settings


def load_backbone(
    folder: Path, dtype: str, device: torch.device, device_map: DeviceMap | None = None
) -> Any:
    """The base as training runs it.

    Args:
        folder: of the checkpoint.
        dtype: "float32" or "bfloat16".
        device: of the base, and of what is computed from it.
        device_map: as in `open_model`.
    """
    # On a CPU the backward pass of SDPA takes three times as long as that of eager attention.
    attention: Attention = "eager" if device.type == "cpu" else "sdpa"
    return open_model(
        folder, dtype=dtype, device=device, attention=attention, device_map=device_map
    )


def skeleton(folder: Path) -> Any:
    """The base without weights, on PyTorch's meta device: its layers and sizes, at no cost."""
    with torch.device("meta"):
        return causal_lm_without_weights(folder)


def enable_checkpointing(backbone: Any) -> None:
    """Keep no activation inside the backbone's layers for the backward pass: each is computed again."""
    backbone.gradient_checkpointing_enable({"use_reentrant": False})
    backbone.train()  # in eval mode Transformers keeps all of them; no family here has dropout


def untrained_persrm(backbone: Any, dimensions: tuple[str, ...], settings: Settings) -> PersRM:
    """A PersRM with untrained LoRA and heads, of the settings' sizes.

    Args:
        backbone: a Transformers model, which gets the LoRA.
        dimensions: names of the D dimensions.
        settings: fork layer, ranks, method.

    Returns:
        The PersRM.
    """
    layers = backbone.config.get_text_config().num_hidden_layers
    fork = settings.fork_layer
    if fork is None:
        fork = layers if settings.heads_only_by_default else layers - max(round(layers * 0.27), 1)
    return PersRM(
        backbone,
        fork_layer=fork,
        dimensions=dimensions,
        lora_rank=settings.lora_rank,
        lora_alpha=2.0 * settings.lora_rank,
        head_rank=settings.head_rank,
        constants=settings.method == "scores",
        gates=settings.teacher is not None and settings.teacher.gate,
    )


def adapter_config(
    model: PersRM, backbone: Backbone, training: dict[str, Any], **defaults: Any
) -> AdapterConfig:
    """pad_config.json of a model's adapter.

    Args:
        model: its tensors are not read.
        backbone: what the manifest says of the base.
        training: what the manifest says of the training; JSON.
        **defaults: of requests: beta, top_k, no_repeat, min_p, loop_price, chat_template.

    Returns:
        The config. Raises AdapterError for what the format does not accept.
    """
    return AdapterConfig(
        format_version=format_version_for(
            backbone,
            heads_only=model.heads_only,
            constants=model.head_C is not None,
            gated=model.head_G is not None,
        ),
        backbone=backbone,
        fork_layer=model.fork_layer,
        dimensions=model.dimensions,
        head_rank=model.head_A.shape[1],
        gated=model.head_G is not None,
        training=training,
        **defaults,
    )


def to_adapter(model: PersRM, config: AdapterConfig) -> Adapter:
    """The trained tensors as an adapter, on the CPU; config: of `adapter_config`."""
    heads = model.heads.mapped(lambda part: part.detach().cpu().clone())
    return Adapter(config, _lora(model), *heads)


@torch.no_grad()
def scale_heads_to_one_logit(model: PersRM, spread: Tensor) -> None:
    """Divide every dimension's head by its rewards' spread [D], in place, so that all have one strength.

    Rewards are linear in B and C; gates stay what they are.
    """
    for part in (model.head_B, model.head_C):
        if part is not None:
            part.div_(spread.to(part).view(-1, *[1] * (part.ndim - 1)))


def save_bias_adapter(config: AdapterConfig, constants: Tensor, run_folder: Path) -> None:
    """Save the control that an adapter has to beat in a run's folder: a bias over the vocabulary.

    Args:
        config: the adapter's.
        constants: [D, H], one direction for all hidden states, per dimension; on the CPU.
        run_folder: gets the subfolder "bias".
    """
    save_adapter(
        _constants_adapter(config, constants), run_folder / "bias", "A bias over the vocabulary.\n"
    )


def _constants_adapter(config: AdapterConfig, constants: Tensor) -> Adapter:
    """An adapter that has constants [D, H] and nothing else: its rewards do not depend on the state."""
    plain = replace(
        config,
        format_version=format_version_for(
            config.backbone, heads_only=True, constants=True, gated=False
        ),
        gated=False,
        fork_layer=config.backbone.num_layers,
        head_rank=1,
        training={"method": "constant"},
    )
    A = torch.zeros(len(constants), 1, constants.shape[-1])
    return Adapter(plain, EMPTY_LORA, A, A.transpose(1, 2).contiguous(), constants)


def _lora(model: PersRM) -> LoRA:
    """The LoRA in float16: half the size of float32, finer than bfloat16."""
    if model.heads_only:
        return EMPTY_LORA
    settings = model.lora.peft_config["default"]
    alpha = float(settings.lora_alpha)
    weights = {
        key: (a.detach().half().cpu().contiguous(), b.detach().half().cpu().contiguous())
        for key, (a, b) in model.lora_weights().items()
    }
    return LoRA(rank=settings.r, alpha=alpha, scaling=alpha / settings.r, weights=weights)
