"""The ranks of tensor parallelism: which of them this process is, and sums over all of them; the stages of
pipeline parallelism: whether this process is in the last one, and its layers.

Leans on vLLM's groups (vllm/distributed/parallel_state.py) and on how it shares layers out
(vllm/distributed/utils.py). Where there is no group, as in a front end, there is one rank and one stage.
Knows nothing of forks and rewards.
"""

from __future__ import annotations

from torch import Tensor
from vllm.distributed import parallel_state
from vllm.distributed.communication_op import tensor_model_parallel_all_reduce
from vllm.distributed.utils import get_pp_indices

from pad_vllm.vllm_api.vllm_names import VllmConfig


def tp_rank_and_size() -> tuple[int, int]:
    """This process's rank, and how many ranks there are."""
    if not parallel_state.model_parallel_is_initialized():
        return 0, 1
    return (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )


def sum_over_ranks(share: Tensor) -> Tensor:
    """The sum of the ranks' shares, on each of them; all must call it, with one shape, in one order.

    It may be computed in the place of the share.
    """
    return (
        share
        if tp_rank_and_size()[1] == 1
        else tensor_model_parallel_all_reduce(share.contiguous())
    )


def computes_logits() -> bool:
    """Whether this process makes logits, and so guides: only the last stage has the norm and lm_head."""
    if not parallel_state.model_parallel_is_initialized():
        return True
    return bool(parallel_state.get_pp_group().is_last_rank)


def last_stage_layers(config: VllmConfig) -> range:
    """The decoder layers of the last stage; VLLM_PP_LAYER_PARTITION has a say. Raises ValueError where that
    does not fit the model.
    """
    layers = config.model_config.get_total_num_hidden_layers()
    stages = config.parallel_config.pipeline_parallel_size
    return range(*get_pp_indices(layers, stages - 1, stages))
