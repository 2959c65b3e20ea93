"""vLLM's Ray executor on vLLM's CPU platform, which names no resource of Ray's for its devices: for tests.

Ray is told of one device a rank, under the name by which vLLM's GPU platforms know theirs. What is real then:
actors as workers, their start, their environment, messages between them and the engine. What is not: devices.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def enable() -> None:
    """For this process; Ray calls it in each of its own."""
    from vllm.platforms.cpu import CpuPlatform

    CpuPlatform.ray_device_key = "GPU"


@contextlib.contextmanager
def nodes(devices: list[int]) -> Iterator[None]:
    """A cluster on this machine, a node for each number of devices; none for an empty list."""
    if not devices:
        yield
        return
    import ray
    from ray._private.ray_constants import RAY_WORKER_NICENESS
    from ray.cluster_utils import Cluster

    enable()
    os.environ[RAY_WORKER_NICENESS] = (
        "0"  # 15 by default: beside other tests actors wait for minutes
    )
    path = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    own = {"worker_process_setup_hook": enable, "env_vars": {"PYTHONPATH": path}}
    cluster = Cluster()
    try:
        for count in devices:
            cluster.add_node(num_cpus=0, num_gpus=count, object_store_memory=2**27)
        ray.init(address=cluster.address, runtime_env=own)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()
