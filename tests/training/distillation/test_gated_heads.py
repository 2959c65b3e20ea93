"""Heads with gates learn a teacher that is gated, and one that is linear as well as heads without."""

from __future__ import annotations

from functools import partial

import pytest
import tiny_examples
import torch

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.training.distillation import prompted_teacher
from pad_vllm.training.objective.candidate_rewards import persrm_rewards
from pad_vllm.training.training_run import TrainingRun

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = {"epochs": 16, "head_epochs": 0, "head_lr": 2e-2, "evaluate_every": 20}


@pytest.fixture(scope="module", autouse=True)
def planted():
    """Teachers: "warm" is a gated map of the state of rank 2, "brief" a linear one."""
    torch.manual_seed(5)
    A, B, G = torch.randn(2, 64) / 8, torch.randn(64, 2), torch.randn(2, 64) / 2

    def directions(model, some, h_B):
        linear = [h.float() @ A.T for h in h_B]
        gated = [2 * (h.float() @ G.T).sigmoid() * u for h, u in zip(h_B, linear, strict=True)]
        return [torch.stack([g @ B.T, u @ B.T]) for g, u in zip(gated, linear, strict=True)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompted_teacher, "teacher_directions", directions)
        yield


def run(root, out, recipe, *, gate):
    settings = tiny_examples.settings(
        root, out, fork_layer=None, teacher={"gate": gate}, recipe=recipe
    )
    made = TrainingRun(settings, root / "cache", "pad-vllm train ...")
    tiny_examples.answer(root, out, made.method.prompts.answered)
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("gated")


def test_gates_explain_more_of_a_gated_teacher_and_no_less_of_a_linear_one(root):
    runs = [run(root, f"gate-{gate}", RECIPE, gate=gate) for gate in (False, True)]
    plain, gated = (
        {row["dimension"]: row for row in one.train().config.training["taught"]} for one in runs
    )
    for name in ("warm", "brief"):
        assert plain[name]["heads"] == gated[name]["heads"]
    assert 1 - gated["warm"]["trained"] < 0.7 * (1 - plain["warm"]["trained"])
    assert gated["brief"]["trained"] > plain["brief"]["trained"] - 0.01
    for one in runs:
        spreads = one.method.held_out_spreads(partial(persrm_rewards, one.model))
        assert torch.allclose(spreads, torch.ones(2), atol=1e-3)  # B was scaled, and G was not


def test_gates_start_at_a_factor_of_one_and_are_kept_by_the_adapter_as_they_were_trained(root):
    untrained = {"epochs": 0, "head_lr": 0.0, "weight_decay": 0.0}
    start = run(root, "start", untrained, gate=True)
    adapter = start.train()
    A, _ = start.method.statistics.low_rank_heads(8, start.method.penalties)
    assert torch.equal(adapter.head_A, A)
    assert not adapter.head_G.any()
    trained = load_adapter(root / "gate-True")
    assert trained.config.gated
    assert trained.head_G.any(-1).all()
    assert "gated heads of rank 8" in (root / "gate-True" / "README.md").read_text()
    bias = load_adapter(root / "gate-True.run" / "bias")
    assert not bias.config.gated
    assert load_adapter(root / "gate-False").head_G is None
