"""The same run on many workers, through Ray Train: `pad-vllm train --workers N`.

Every worker runs a `TrainingRun`; Ray sets up the process group that Accelerate finds. All state is in the
run's folder, which every worker must see (on several machines: a shared file system), so a worker that dies
costs the steps since the last checkpoint: Ray starts the group again and the run goes on from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pad_vllm.training.settings import Settings

MAX_RESTARTS = 3
"""How often a group of workers with a dead one is started again before the run fails."""


def train_on_ray(
    settings: Settings, cache: Path, command: str, workers: int, address: str | None
) -> None:
    """Train on the workers of a Ray cluster, and return when the adapter is saved.

    Args:
        settings: All choices of the run.
        cache: Folder of fork activations, which every worker must see.
        command: The command as typed, for the model card.
        workers: Number of workers; each takes a GPU if this machine has one.
        address: Address of the cluster; None joins the usual one, or starts one.
    """
    import ray
    import torch
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pad_vllm.training.run_folder import run_folder

    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=False, log_to_driver=True)
    trainer = TorchTrainer(
        _train_on_worker,
        train_loop_config={
            "settings": settings.as_dict(),
            "cache": str(cache.absolute()),
            "command": command,
        },
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=torch.cuda.is_available()),
        run_config=RunConfig(
            name="ray",
            storage_path=str(run_folder(settings).absolute()),
            failure_config=FailureConfig(max_failures=MAX_RESTARTS),
        ),
    )
    trainer.fit()


def _train_on_worker(config: dict[str, Any]) -> None:
    from pad_vllm.training.training_run import TrainingRun

    settings = Settings.from_dict(config["settings"])
    TrainingRun(settings, Path(config["cache"]), config["command"]).train()
