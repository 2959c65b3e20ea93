"""Checkpoints: any machine reads what another wrote."""

from __future__ import annotations

import torch

from pad_vllm.training.loop import training_checkpoint


def test_a_checkpoint_that_a_gpu_wrote_is_read_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
    optimiser = {"state": {0: {"exp_avg": torch.ones(2)}}}
    training_checkpoint.save_checkpoint(tmp_path, 5, {"a": torch.ones(2)}, optimiser, {"step": 5})
    _, found, state = training_checkpoint.load_newest_checkpoint(tmp_path)
    assert state == {"step": 5}
    assert found["state"][0]["exp_avg"].device == torch.device("cpu")
