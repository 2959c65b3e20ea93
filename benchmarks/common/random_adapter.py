"""Adapters of random weights, for tests and benchmarks: the cost of serving does not depend on the values.

In: shapes and a seed, or a checkpoint. Out: an `Adapter` that can be saved and served, or its folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import save_adapter
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.manifest import AdapterConfig, format_version_for
from pad_vllm.adapter.peft_lora import EMPTY_LORA, LoRA
from pad_vllm.adapter.shape_checks import module_shapes


def random_adapter(
    backbone: Backbone,
    fork_layer: int,
    dimensions: tuple[str, ...],
    rank: int,
    head_rank: int,
    *,
    shapes: Mapping[str, tuple[int, int]],
    std: float,
    seed: int,
    constants: bool = False,
    gates: bool = False,
) -> Adapter:
    """An adapter of normally distributed weights, scaling 1.

    Args:
        backbone: The model it is made for.
        fork_layer: First layer with a LoRA; backbone.num_layers for heads only.
        dimensions: Names of the preference dimensions.
        rank: Of the LoRA.
        head_rank: Of the preference heads.
        shapes: Module name -> (out, in) of its weight, the same in every layer; unused for heads only.
        std: Standard deviation of every tensor; 0 gives an adapter without effect.
        seed: Of the weights.
        constants: Whether the heads have constants.
        gates: Whether the heads have gates.
    """
    source = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source) * std

    weights = {
        (layer, module): (draw(rank, in_features), draw(out_features, rank))
        for layer in range(fork_layer, backbone.num_layers)
        for module, (out_features, in_features) in sorted(shapes.items())
    }
    count, hidden = len(dimensions), backbone.hidden_size
    heads_only = fork_layer == backbone.num_layers
    config = AdapterConfig(
        format_version=format_version_for(
            backbone, heads_only=heads_only, constants=constants, gated=gates
        ),
        backbone=backbone,
        fork_layer=fork_layer,
        dimensions=tuple(dimensions),
        head_rank=head_rank,
        beta=1.0,
        top_k=min(10, backbone.vocab_size),
        gated=gates,
        training={"method": "random", "std": std, "seed": seed},
    )
    lora = EMPTY_LORA if heads_only else LoRA(rank, float(rank), 1.0, weights)
    head_A, head_B = draw(count, head_rank, hidden), draw(count, hidden, head_rank)
    head_C = draw(count, hidden) if constants else None
    head_G = draw(count, head_rank, hidden) if gates else None
    return Adapter(config, lora, head_A, head_B, head_C, head_G)


def save_random_adapter(base: str, folder: Path, fork_layer: int | None, load_format: str) -> str:
    """Write a random adapter (LoRA and head rank 16, dimensions a, b and c) for a base that has none.

    Args:
        base: Folder of the base.
        folder: Where the adapter is written.
        fork_layer: The number of layers or more is heads only; None forks at the top quarter.
        load_format: vLLM's; of `dummy` the base is a bare config, without weights to be known by.

    Returns:
        The adapter's folder.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base)
    layers = config.get_text_config().num_hidden_layers
    fork = round(layers * 0.75) if fork_layer is None else min(fork_layer, layers)
    heads_only = fork == layers
    describe = Backbone.from_config if load_format == "dummy" else Backbone.from_checkpoint
    adapter = random_adapter(
        describe(Path(base)),
        fork,
        ("a", "b", "c"),
        rank=16,
        head_rank=16,
        shapes={} if heads_only else module_shapes(config),
        std=0.01,
        seed=0,
        constants=heads_only,
    )
    save_adapter(adapter, folder, "A random adapter, for timing only.\n")
    return str(folder)
