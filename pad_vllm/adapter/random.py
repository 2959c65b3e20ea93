"""Adapters of random weights, for tests and benchmarks: the cost of serving does not depend on the values.

In: shapes and a seed. Out: an `Adapter` that can be saved and served.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.manifest import FORMAT_VERSION, AdapterConfig, Backbone
from pad_vllm.adapter.peft_lora import LoRA


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
) -> Adapter:
    """An adapter of normally distributed weights, scaling 1, for tests and benchmarks.

    std: of every tensor; 0 gives an adapter without effect.
    shapes: module name -> (out, in) of its weight, the same in every layer.
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
    config = AdapterConfig(
        format_version=FORMAT_VERSION,
        backbone=backbone,
        fork_layer=fork_layer,
        dimensions=tuple(dimensions),
        head_rank=head_rank,
        beta=1.0,
        top_k=min(10, backbone.vocab_size),
        training={"method": "random", "std": std, "seed": seed},
    )
    lora = LoRA(rank=rank, alpha=float(rank), scaling=1.0, weights=weights)
    head_A, head_B = draw(count, head_rank, hidden), draw(count, hidden, head_rank)
    return Adapter(config, lora, head_A, head_B)
