"""What V2's drafters read of a forked model: the base's stream, and of other models all that there is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")

from pad_vllm.vllm_api.patches import drafter_states

H = 8
runner = pytest.importorskip("vllm.v1.worker.gpu.model_runner")


@pytest.fixture(autouse=True)
def original(monkeypatch):
    """vLLM's own function, which is back after the test."""
    function = runner.get_drafter_hidden_states
    monkeypatch.setattr(runner, "get_drafter_hidden_states", function)
    return function


def test_a_drafter_of_a_forked_model_reads_the_bases_stream():
    drafter_states.patch_drafter_hidden_states()
    streams = torch.randn(5, 2 * H)
    forked = SimpleNamespace(pad_streams=lambda hidden: hidden.chunk(2, dim=-1))
    assert torch.equal(runner.get_drafter_hidden_states(forked, streams), streams[:, :H])


def test_a_drafter_of_another_model_reads_what_vllm_gives_it():
    drafter_states.patch_drafter_hidden_states()
    hidden, residual = torch.randn(5, H), torch.randn(9, 4 * H)
    assert runner.get_drafter_hidden_states(SimpleNamespace(), hidden) is hidden
    with_residual = SimpleNamespace(get_mtp_target_hidden_states=lambda: residual)
    assert torch.equal(runner.get_drafter_hidden_states(with_residual, hidden), residual[:5])


def test_vllms_function_is_wrapped_once():
    drafter_states.patch_drafter_hidden_states()
    first = runner.get_drafter_hidden_states
    drafter_states.patch_drafter_hidden_states()
    assert runner.get_drafter_hidden_states is first
    assert first.pad_wrappers == (drafter_states._of_base_stream,)


@pytest.mark.parametrize("other", [None, lambda hidden_states: hidden_states])
def test_a_runner_that_gives_drafters_something_else_is_refused(monkeypatch, other):
    monkeypatch.setattr(runner, "get_drafter_hidden_states", other)
    with pytest.raises(
        drafter_states.IncompatibleVLLM, match="gives drafters hidden .*Drop --spec"
    ):
        drafter_states.patch_drafter_hidden_states()
