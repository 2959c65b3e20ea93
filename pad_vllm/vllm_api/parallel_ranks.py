"""Tensor parallelism: this process's rank, and sums over all ranks. Pipeline parallelism: whether this
process is in the last stage, and the layers of that stage. All of an engine's processes: what each says.

Uses vLLM's groups (vllm/distributed/parallel_state.py) and its division of layers
(vllm/distributed/utils.py). Where vLLM has no groups, as in a front end, there are one rank and one stage.
Knows nothing of forks or rewards.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.distributed import parallel_state
from vllm.distributed.communication_op import tensor_model_parallel_all_reduce
from vllm.distributed.utils import get_pp_indices

from pad_vllm.vllm_api.vllm_names import VllmConfig


def tp_rank_and_size() -> tuple[int, int]:
    """This process's rank of tensor parallelism, and the number of ranks."""
    if not parallel_state.model_parallel_is_initialized():
        return 0, 1
    return (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )


def sum_over_ranks(share: Tensor) -> Tensor:
    """Sum the ranks' shares. Every rank must call it, with one shape and in one order, and gets the sum.

    The result may be written into `share`.
    """
    if tp_rank_and_size()[1] == 1:
        return share
    return tensor_model_parallel_all_reduce(share.contiguous())


def texts_of_all_ranks(text: str) -> list[str]:
    """What each rank of all kinds of parallelism passes, in the order of ranks. Every rank must call it."""
    if not parallel_state.model_parallel_is_initialized():
        return [text]
    world = parallel_state.get_world_group()
    texts = [""] * world.world_size
    torch.distributed.all_gather_object(texts, text, group=world.cpu_group)
    return texts


def computes_logits() -> bool:
    """Whether this process computes logits, and so guides: only the last stage has the norm and lm_head."""
    if not parallel_state.model_parallel_is_initialized():
        return True
    return bool(parallel_state.get_pp_group().is_last_rank)


def last_stage_layers(config: VllmConfig) -> range:
    """Indices of the last stage's decoder layers; VLLM_PP_LAYER_PARTITION may set them. Raises ValueError
    where that variable does not fit the model.
    """
    layers = config.model_config.get_total_num_hidden_layers()
    stages = config.parallel_config.pipeline_parallel_size
    return range(*get_pp_indices(layers, stages - 1, stages))
