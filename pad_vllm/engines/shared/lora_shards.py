"""The LoRA of one of vLLM's linear layers, as one rank of tensor parallelism needs it.

A layer that splits its outputs (q, k, v; gate, up) needs the rows of B that belong to its own outputs, and
the whole A. One that splits its inputs (o, down) needs the columns of A, and the whole B. The ranks'
products of the latter add up to the layer's, so they are added before vLLM's own sum over the ranks, which
stays the only one.
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
    """From here on the layer adds its rank's part of the LoRA to the second half of its rows.

    Args:
        linear: a column- or row-parallel layer of vLLM, loaded.
        pairs: whole A [r, in] and B [out_i, r] of each module that the layer packs; None without LoRA.
        scaling: factor on every B.
        device: the model's. The layer is not asked, since a quantised layer may have no parameter left.

    Raises:
        ValueError: the layer is split in another way, or has another width.
    """
    rank, num_ranks = getattr(linear, "tp_rank", 0), getattr(linear, "tp_size", 1)
    gathers = getattr(linear, "gather_output", False)
    splits_input_itself = not getattr(linear, "input_is_parallel", True)
    if num_ranks > 1 and (gathers or splits_input_itself):
        raise ValueError(
            f"{type(linear).__name__} gathers or splits its rows itself; accepted under tensor parallelism "
            "are layers that leave that to their neighbours"
        )
    widths = list(getattr(linear, "output_partition_sizes", [linear.output_size]))
    input_width = getattr(linear, "input_size_per_partition", linear.input_size)
    shards: list[reward_lora.LoRAPair | None] = []
    for pair, width in zip(pairs, widths, strict=True):
        if pair is None:
            shards.append(None)
            continue
        A, B = pair
        shard_A = rank_shard(A, dim=1, width=input_width, rank=rank, num_ranks=num_ranks)
        shard_B = rank_shard(B, dim=0, width=width, rank=rank, num_ranks=num_ranks)
        shards.append((shard_A, shard_B))
    A, B = reward_lora.pack_lora_pairs(shards, widths, scaling)
    reward_lora.add_reward_lora(linear, A, B, linear.params_dtype, device)
    splits_inputs = any(pair is not None and pair[0].shape[1] > input_width for pair in pairs)
    if splits_inputs and linear.reduce_results:
        linear.reduce_results = False
        mix_in(linear, ReduceAfterLoRA)


def rank_shard(whole: Tensor, *, dim: int, width: int, rank: int, num_ranks: int) -> Tensor:
    """One rank's part of a LoRA matrix, a view.

    The parts are equal and lie one after the other; each is on as many neighbouring ranks as need it (so vLLM
    repeats KV heads where there are fewer of them than ranks).

    Args:
        whole: A [r, in] or B [out, r].
        dim: 1 to split A, 0 to split B.
        width: of the part, along `dim`.
        rank: of this process.
        num_ranks: of tensor parallelism.

    Raises:
        ValueError: the matrix does not split into parts of that width.
    """
    num_parts, remainder = divmod(whole.shape[dim], width)
    if remainder or not num_parts or num_ranks % num_parts:
        raise ValueError(
            f"LoRA {'BA'[dim]} has {whole.shape[dim]} {('rows', 'columns')[dim]} where the layer has {width}"
            f"{f' on each of {num_ranks} ranks' if num_ranks > 1 else ''}"
        )
    return whole.narrow(dim, rank * num_parts // num_ranks * width, width)


class ReduceAfterLoRA:
    """Mixin for a row-parallel layer with reduce_results off: sums the ranks' outputs, LoRA included."""

    def forward(self, input_: Tensor) -> Any:
        """input_ [2T, in / ranks] -> what the layer returns, its output [2T, out] summed over the ranks."""
        result = super().forward(input_)  # type: ignore[misc]
        if isinstance(result, tuple):
            return (sum_over_ranks(result[0]), *result[1:])
        return sum_over_ranks(result)
