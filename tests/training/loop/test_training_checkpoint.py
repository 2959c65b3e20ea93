"""Checkpoints: any machine reads what another wrote, and nothing in them runs."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from pad_vllm.training.loop import training_checkpoint


def test_a_checkpoint_that_a_gpu_wrote_is_read_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
    optimiser = {"state": {0: {"exp_avg": torch.ones(2)}}}
    training_checkpoint.save_checkpoint(tmp_path, 5, {"a": torch.ones(2)}, optimiser, {"step": 5})
    _, found, state = training_checkpoint.load_newest_checkpoint(tmp_path)
    assert state == {"step": 5}
    assert found["state"][0]["exp_avg"].device == torch.device("cpu")


class Command:
    """What a pickle can do when it is read."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    training_checkpoint.save_checkpoint(tmp_path, 1, {"a": torch.ones(2)}, {}, {})
    (optimiser,) = tmp_path.glob("step-*/optimiser.pt")
    torch.save(Command(tmp_path / "ran"), optimiser)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        training_checkpoint.load_newest_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()
