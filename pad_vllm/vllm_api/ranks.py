"""The ranks of tensor parallelism: which of them this process is, and sums over all of them.

Leans on vLLM's tensor-parallel group (vllm/distributed/parallel_state.py). Where there is no group, as in a
front end, there is one rank. Knows nothing of layers and rewards.
"""

from __future__ import annotations

from torch import Tensor
from vllm.distributed import parallel_state
from vllm.distributed.communication_op import tensor_model_parallel_all_reduce


def place() -> tuple[int, int]:
    """This process's rank, and how many ranks there are."""
    if not parallel_state.model_parallel_is_initialized():
        return 0, 1
    return (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )


def summed(share: Tensor) -> Tensor:
    """The sum of the ranks' shares, on each of them; all must call it, with one shape, in one order.

    It may be computed in the place of the share.
    """
    return share if place()[1] == 1 else tensor_model_parallel_all_reduce(share.contiguous())
