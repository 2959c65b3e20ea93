"""Distillation from instructions on a tiny model: planted, resumed, refused, and what comes out."""

from __future__ import annotations

import json
from functools import partial

import pytest
import tiny_examples
import torch
from planted_preferences import kill, require_equal

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.training.distillation import distillation_method, prompted_teacher
from pad_vllm.training.distillation.distillation_method import DistillationMethod
from pad_vllm.training.distillation.ridge_statistics import RIDGE_PENALTIES
from pad_vllm.training.objective.candidate_rewards import linear_map_rewards, persrm_rewards
from pad_vllm.training.pairs_method import PairsMethod
from pad_vllm.training.report.evaluate_adapter import evaluate_held_out
from pad_vllm.training.sampling.vllm_sampler import SamplingOptions
from pad_vllm.training.settings import Settings
from pad_vllm.training.training_methods import METHODS
from pad_vllm.training.training_run import TrainingRun

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("distilled")


@pytest.fixture(scope="module", autouse=True)
def planted():
    """Teachers that a PersRM can learn from: "warm" is a linear map of the state, "brief" constant."""
    torch.manual_seed(5)
    warm, brief = torch.randn(64, 8) @ torch.randn(8, 64) / 40, torch.randn(64)

    def directions(model, some, h_B):
        return [torch.stack([h.float() @ warm.T, brief.expand_as(h.float())]) for h in h_B]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompted_teacher, "teacher_directions", directions)
        yield


def started(root, out, **changes):
    settings = tiny_examples.settings(root, out, **changes)
    run = TrainingRun(settings, root / "cache", "pad-vllm train ...")
    tiny_examples.answer(root, out, run.method.prompts.answered)
    return run


@pytest.fixture(scope="module")
def finished(root):
    """The adapter and the history of an uninterrupted run."""
    adapter = started(root, "finished").train()
    return adapter, json.loads((root / "finished" / "history.json").read_text())


def test_settings_with_instructions_are_a_distillation(root):
    settings = tiny_examples.settings(root)
    assert METHODS[settings.method] is DistillationMethod
    assert METHODS[Settings("base", (), "out").method] is PairsMethod
    assert Settings.from_dict(settings.as_dict()) == settings


def test_a_planted_teacher_is_learned_and_the_constant_direction_learns_what_is_constant(finished):
    adapter, history = finished
    warm, brief = adapter.config.training["taught"]
    assert (warm["dimension"], warm["sentences"]) == ("warm", ["be warm"])
    assert warm["trained"] > 0.9 > warm["constant"]
    assert brief["constant"] > 0.99
    assert brief["trained"] > 0.9
    assert {row["stage"] for row in history} == {1, 2}


def test_answers_are_drawn_anew_where_the_prompts_or_the_sampling_changed(root, monkeypatch):
    asked = root / "asked.txt"
    asked.write_text("".join(f"question {n}\n" for n in range(40)))
    answers = root / "changed.run" / "answers.jsonl"

    def start():
        started(root, "changed", teacher={"prompts": str(asked)})
        return answers.read_text()

    drawn = start()
    answers.write_text(drawn + drawn)

    def go_on():
        settings = tiny_examples.settings(root, "changed", teacher={"prompts": str(asked)})
        TrainingRun(settings, root / "cache", "pad-vllm train ...")

    go_on()
    assert answers.read_text() == drawn + drawn
    asked.write_text("".join(f"question {n}\n" for n in range(41)))
    go_on()
    assert not answers.exists()
    start()
    monkeypatch.setattr(
        distillation_method, "SamplingOptions", partial(SamplingOptions, temperature=0.5)
    )
    go_on()
    assert not answers.exists()
    log = (root / "changed.run" / "log.txt").read_text()
    assert f"prompts {asked} has changed since this run was begun" in log
    assert "sampling temperature has changed since this run was begun (0.8, now 0.5)" in log


def test_a_base_that_gave_no_answers_is_an_error_that_says_where_the_reasons_are(root, monkeypatch):
    run = started(root, "silent")
    run.context.folder.joinpath("answers.jsonl").write_text("")
    monkeypatch.setattr(distillation_method, "draw_in_subprocess", lambda *_: None)
    with pytest.raises(
        ValueError, match=r"no prompt of .*two different answers.*answers\.declined\.jsonl"
    ):
        run.train()


def test_training_lowers_the_loss_and_raises_the_shares_from_nothing(root):
    run = started(root, "raised", recipe={"epochs": 5, "head_epochs": 0, "head_lr": 3e-2})
    closed_form = run.method.set_heads_to_closed_form

    def forgotten():
        closed_form()
        with torch.no_grad():
            run.model.head_B.zero_()

    run.method.set_heads_to_closed_form = forgotten
    rows = run.train().config.training["taught"]
    history = json.loads((root / "raised" / "history.json").read_text())
    loss = [row["loss"] for row in history if row["step"]]
    assert sum(loss[-3:]) < 0.7 * sum(loss[:3])
    looks = [sum(row["accuracy"].values()) for row in history if "accuracy" in row]
    assert looks[-1] > looks[0]
    assert all(row["trained"] > 0.2 for row in rows)


def test_heads_start_at_the_closed_form_and_stay_there_without_steps(root):
    run = started(root, "heads", recipe={"epochs": 0, "head_lr": 0.0, "weight_decay": 0.0})
    adapter = run.train()
    A, B = run.method.statistics.low_rank_heads(8, run.method.penalties)
    assert torch.equal(adapter.head_A, A)
    assert torch.equal(adapter.head_B, B)
    for row in adapter.config.training["taught"]:
        assert row["trained"] == pytest.approx(row["heads"], abs=1e-3)
    assert all(not b.any() for _, b in adapter.lora.weights.values())


def test_a_penalty_is_the_one_that_explains_most_of_the_validation_prompts(root):
    run = started(root, "penalty", recipe={"epochs": 0})
    method, explained = run.method, []
    closed_form = method.set_heads_to_closed_form

    def looked():
        closed_form()
        for penalty in RIDGE_PENALTIES:
            maps = method.statistics.ridge_maps(penalty).float()
            rewards = partial(linear_map_rewards, run.model, maps)
            explained.append(method.shares(rewards, method.parts.validation))

    method.set_heads_to_closed_form = looked
    rows = run.train().config.training["taught"]
    best = torch.stack(explained).argmax(0)
    assert method.penalties == [RIDGE_PENALTIES[i] for i in best]
    assert [row["penalty"] for row in rows] == pytest.approx(method.penalties)


def test_heads_only_are_trained_where_the_fork_is_at_the_top(root):
    plain = {"gate": False}
    run = started(root, "top", fork_layer=None, teacher=plain, recipe={"epochs": 4})
    adapter = run.train()
    assert adapter.config.heads_only
    assert adapter.config.format_version == 2
    for row in adapter.config.training["taught"]:
        assert row["trained"] >= row["heads"] > 0.3
    loaded = load_adapter(root / "top")
    assert not loaded.lora.weights
    assert torch.equal(loaded.head_B, adapter.head_B)
    served = run.method.held_out_spreads(partial(persrm_rewards, run.model))
    assert torch.allclose(served, torch.ones(2), atol=1e-3)  # one unit for every dimension
    bias = load_adapter(root / "top.run" / "bias")
    assert bias.config.heads_only
    assert not bias.head_B.any()
    assert bias.head_C.any()


def test_what_comes_out_is_an_ordinary_adapter_whose_card_has_the_instructions(finished, root):
    adapter, _ = finished
    out = root / "finished"
    loaded = load_adapter(out)
    assert loaded.config.dimensions == ("warm", "brief")
    assert torch.equal(loaded.head_B, adapter.head_B)
    assert loaded.config.training["settings"]["teacher"]["sentences"] == tiny_examples.SENTENCES
    card = (out / "README.md").read_text()
    assert "- warm: be warm" in card
    assert "| dimension | trained | first | heads | constant | variance | spread |" in card
    assert (out / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize(("stage", "step"), [(1, 2), (1, 5), (2, 2)])
def test_a_run_stopped_anywhere_ends_with_the_same_numbers(finished, root, stage, step):
    adapter, history = finished
    out = f"stopped-{stage}-{step}"
    kill(started(root, out), stage, step)
    again = started(root, out).train()
    assert json.loads((root / out / "history.json").read_text()) == history
    assert again.config.training["taught"] == adapter.config.training["taught"]
    require_equal(again, adapter)


def test_without_a_file_the_prompts_that_ship_are_answered(root):
    settings = tiny_examples.settings(
        root, "shipped", teacher={"prompts": "", "answers": 12}, max_prompt=400
    )
    method = TrainingRun(settings, root / "cache", "pad-vllm train ...").method
    assert len(method.prompts.answered) == 12
    assert len(method.prompts.first_token_only) == 24
    assert method.describe_data()["described"].startswith("Prompts of prompts.txt")
    assert list(method.made_from()["prompts"]) == ["prompts.txt"]  # and no folder of this machine


def test_prompts_beyond_those_answered_teach_first_tokens(root):
    run = started(root, "firsts")
    method = run.method
    assert len(method.prompts.answered) == 24
    assert len(method.prompts.first_token_only) == 16
    run.gather()
    parts = method.parts
    assert all(one.response_ids == [[1]] for one in parts.first_tokens)
    example = method.stage_inputs()[1].example(0, 1, 0)
    assert [len(one.z_B) for one in example.first_tokens] == [1, 1]
    seen = {one.prompt_key for one in [*parts.train, *parts.first_tokens]}
    assert not seen & {one.prompt_key for one in [*parts.held_out, *parts.held_out_first_tokens]}


def test_prompts_that_all_are_too_long_are_an_error_that_says_what_to_do(root):
    with pytest.raises(
        ValueError, match="none of its 40 prompts has at most 5 tokens.*--max-prompt"
    ):
        started(root, "long", max_prompt=5)


def test_other_instructions_are_another_run(finished, root):
    with pytest.raises(ValueError, match="teacher was .*--restart"):
        started(root, "finished", teacher={"sentences": {"warm": "be cold", "brief": "be brief"}})


def test_evaluate_says_that_there_are_no_pairs(finished, root):
    with pytest.raises(ValueError, match="trained from instructions.*Give --data"):
        evaluate_held_out(root / "finished", str(root / "base"), None, root / "cache", [], 0)
