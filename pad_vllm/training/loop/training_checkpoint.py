"""Checkpoints on disk: what a run that is killed at any moment goes on from.

A checkpoint is a folder `step-N` that appears whole or not at all; the two newest are kept. It holds the
trained tensors, the optimiser and a JSON state. Batches, preferences and learning rates are functions of
seed and step, so no random state needs saving. Knows nothing of models or data.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

MAX_CHECKPOINTS = 2
"""The newest ones, which are not deleted."""

_TENSORS, _OPTIMISER, _STATE = "trained.safetensors", "optimiser.pt", "state.json"


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], optimiser: Any, state: dict[str, Any]
) -> None:
    """Write `folder/step-<step>` and delete all but the newest.

    Args:
        folder: the stage's.
        step: number of steps taken.
        tensors: name -> parameter.
        optimiser: its `state_dict()`.
        state: JSON.
    """
    draft = folder / f".draft-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_tensors(draft / _TENSORS, tensors)
    torch.save(optimiser, draft / _OPTIMISER)
    (draft / _STATE).write_text(json.dumps(state))
    target = folder / f"step-{step:08d}"
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    for old in _checkpoints(folder)[:-MAX_CHECKPOINTS]:
        shutil.rmtree(old)


def load_newest_checkpoint(folder: Path) -> tuple[dict[str, Tensor], Any, dict[str, Any]] | None:
    """(tensors, optimiser state, state) of the newest checkpoint, on the CPU; None if there is none."""
    checkpoints = _checkpoints(folder)
    if not checkpoints:
        return None
    newest = checkpoints[-1]
    return (
        load_file(newest / _TENSORS),
        # The device that wrote the checkpoint may be in use by another process, or on another machine.
        torch.load(newest / _OPTIMISER, map_location="cpu", weights_only=True),
        json.loads((newest / _STATE).read_text()),
    )


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write one safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft)
    draft.replace(path)


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob("step-*"))
