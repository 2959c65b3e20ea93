"""The LoRA of one linear layer of vLLM's, as its rank of tensor parallelism needs it.

A layer that splits its outputs (q, k, v; gate, up) has the rows of B that its own outputs have, and the whole
A; one that splits its inputs (o, down) the columns of A, and the whole B. The ranks' products of the latter
add up to the layer's, so that they are added before vLLM's own sum, which then is the only one.
In: a loaded layer, the whole (A, B) of the modules it packs. Knows no adapter and no fork.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pad_vllm.engines import reward_lora
from pad_vllm.engines.override_methods import mix_in
from pad_vllm.vllm_api.parallel_ranks import sum_over_ranks


def add_lora_shard(
    linear: Any, pairs: list[reward_lora.LoRAPair | None], scaling: float, device: torch.device
) -> None:
    """Add the LoRA to the second half of the layer's rows; pairs: a packed module each, None without LoRA.
    device: of the model, not asked of the layer: what a method packs need not be a parameter any more.

    Raises ValueError where the layer is cut in another way, or has another width.
    """
    rank, ranks = getattr(linear, "tp_rank", 0), getattr(linear, "tp_size", 1)
    lone = getattr(linear, "gather_output", False) or not getattr(linear, "input_is_parallel", True)
    if ranks > 1 and lone:
        raise ValueError(
            f"{type(linear).__name__} gathers or splits its rows itself; accepted under tensor parallelism "
            "are layers that leave that to their neighbours"
        )
    widths = list(getattr(linear, "output_partition_sizes", [linear.output_size]))
    inputs = getattr(linear, "input_size_per_partition", linear.input_size)
    mine = [
        pair
        and (
            rank_shard(pair[0], 1, inputs, rank, ranks),
            rank_shard(pair[1], 0, width, rank, ranks),
        )
        for pair, width in zip(pairs, widths, strict=True)
    ]
    A, B = reward_lora.pack_lora_pairs(mine, widths, scaling)
    reward_lora.add_reward_lora(linear, A, B, linear.params_dtype, device)
    split = any(pair is not None and pair[0].shape[1] > inputs for pair in pairs)
    if split and linear.reduce_results:
        linear.reduce_results = False
        mix_in(linear, ReduceAfterLoRA)


def rank_shard(whole: Tensor, dim: int, width: int, rank: int, ranks: int) -> Tensor:
    """The `width` of `whole` along `dim` that a rank has: equal parts, one after the other, each on as many
    neighbouring ranks as it takes (so vLLM repeats KV heads where there are fewer of them than ranks).

    Raises ValueError where it is not cut like that.
    """
    parts, rest = divmod(whole.shape[dim], width)
    if rest or not parts or ranks % parts:
        raise ValueError(
            f"LoRA {'BA'[dim]} has {whole.shape[dim]} {('rows', 'columns')[dim]} where the layer has {width}"
            f"{f' on each of {ranks} ranks' if ranks > 1 else ''}"
        )
    return whole.narrow(dim, rank * parts // ranks * width, width)


class ReduceAfterLoRA:
    """A layer that splits its inputs: the ranks' outputs, LoRA included, are summed once, here."""

    def forward(self, input_: Tensor) -> Any:
        result = super().forward(input_)  # type: ignore[misc]
        if isinstance(result, tuple):
            return (sum_over_ranks(result[0]), *result[1:])
        return sum_over_ranks(result)
