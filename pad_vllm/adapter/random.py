"""Adapters of random weights, for tests and benchmarks: the cost of serving does not depend on the values.

In: shapes and a seed. Out: an `Adapter` that can be saved and served.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.manifest import AdapterConfig, format_version_for
from pad_vllm.adapter.peft_lora import EMPTY_LORA, LoRA


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
) -> Adapter:
    """An adapter of normally distributed weights, scaling 1, for tests and benchmarks.

    std: of every tensor; 0 gives an adapter without effect.
    shapes: module name -> (out, in) of its weight, the same in every layer; unused where the fork is at the
        top, backbone.num_layers.
    constants: whether the heads have constants.
    """
    source = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source) * std

    weights = {
        (layer, module): (draw(rank, inside), draw(outside, rank))
        for layer in range(fork_layer, backbone.num_layers)
        for module, (outside, inside) in sorted(shapes.items())
    }
    count, hidden = len(dimensions), backbone.hidden_size
    heads_only = fork_layer == backbone.num_layers
    config = AdapterConfig(
        format_version=format_version_for(heads_only=heads_only, constants=constants),
        backbone=backbone,
        fork_layer=fork_layer,
        dimensions=tuple(dimensions),
        head_rank=head_rank,
        beta=1.0,
        top_k=min(10, backbone.vocab_size),
        training={"method": "random", "std": std, "seed": seed},
    )
    lora = EMPTY_LORA if heads_only else LoRA(rank, float(rank), 1.0, weights)
    head_A, head_B = draw(count, head_rank, hidden), draw(count, hidden, head_rank)
    return Adapter(config, lora, head_A, head_B, draw(count, hidden) if constants else None)
