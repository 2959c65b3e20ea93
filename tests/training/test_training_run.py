"""A run on a tiny random model: cache, objective, stages, resumption, what comes out."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from types import SimpleNamespace

import planted_preferences as planted
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.cli.evaluate import evaluate as evaluate_command
from pad_vllm.persrm import PersRM
from pad_vllm.training import training_run
from pad_vllm.training.data.prepare_data import prepare_groups
from pad_vllm.training.data.synthetic_preferences import draw_preferences
from pad_vllm.training.loop import trainer, training_checkpoint
from pad_vllm.training.objective.fork_cache import GroupTensorFiles, compute_responses
from pad_vllm.training.objective.loss_module import (
    PairExample,
    PreferenceObjective,
    cached_feature_sums,
)
from pad_vllm.training.objective.pair_accuracy import preferences_to_test
from pad_vllm.training.objective.training_model import untrained_persrm
from pad_vllm.training.objective.training_store import TrainingStore
from pad_vllm.training.pairs_method import PairsMethod
from pad_vllm.training.report.evaluate_adapter import evaluate_held_out
from pad_vllm.training.run_folder import run_folder
from pad_vllm.training.settings import Recipe
from pad_vllm.training.training_run import TrainingRun
from pad_vllm.training.work_estimate import GIB


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def finished(root):
    """An uninterrupted run and what it said."""
    run = TrainingRun(planted.settings(root, "finished"), root / "cache", "pad-vllm train ...")
    return run.train(), json.loads((root / "finished" / "history.json").read_text())


@pytest.fixture
def prepared(root):
    settings = planted.settings(root)
    return prepare_groups(settings, AutoTokenizer.from_pretrained(settings.base))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = PersRM(
        tiny.model("llama"), fork_layer=2, dimensions=planted.DIMENSIONS, lora_rank=4, head_rank=4
    )
    with torch.no_grad():
        model.head_B.normal_(std=0.1)
    return model


def test_a_computed_response_holds_what_two_full_forwards_say(model, prepared):
    group = prepared.train[0]
    response = compute_responses(model, [group], 5)[0][0]
    ids = group.prompt_ids + group.response_ids[0]
    h_B, _ = model.hidden_twice(torch.tensor([ids[:-1]]))
    count = len(group.response_ids[0])
    assert torch.allclose(response.h_B, h_B[0, -count:], atol=1e-5)
    taken = response.ids.gather(-1, response.chosen.unsqueeze(-1)).squeeze(-1)
    assert taken.tolist() == group.response_ids[0]


def test_the_cache_gives_back_what_full_forwards_compute(model, prepared, root, tmp_path):
    groups = prepared.train[:3]
    cached, fresh = (
        TrainingStore(model, tiny.tokenizer(), settings, tmp_path, "weights")
        for settings in (planted.settings(root), planted.settings(root, cached=False))
    )
    cached.build(groups, 0, 1, lambda *_: None, with_targets=True)
    for group in groups:
        rows = (store.responses(group, with_targets=True) for store in (cached, fresh))
        for kept, computed in zip(*rows, strict=True):
            for field in dataclasses.fields(kept):
                one, other = getattr(kept, field.name), getattr(computed, field.name)
                if one is not None:
                    assert torch.allclose(one.float(), other.float(), atol=1e-5), field.name


def test_each_worker_builds_its_share_of_the_cache(model, prepared, root, tmp_path):
    groups = prepared.train[:5]
    store = TrainingStore(model, tiny.tokenizer(), planted.settings(root), tmp_path, "weights")
    store.build(groups, 1, 2, lambda *_: None, with_targets=False)
    assert len(store.fork_files.missing(groups)) == 3
    store.build(groups, 0, 1, lambda *_: None, with_targets=False)
    assert not store.fork_files.missing(groups)


def test_a_cache_file_is_named_by_all_it_depends_on(prepared, tmp_path):
    group, other = prepared.train[:2]
    changed = dataclasses.replace(group, response_ids=[group.response_ids[0], [5, 6]])
    scored = dataclasses.replace(group, scores=group.scores + 1)
    kept, deeper = GroupTensorFiles(tmp_path, {"fork": 2}), GroupTensorFiles(tmp_path, {"fork": 3})
    paths = {k.path(g) for k in (kept, deeper) for g in (group, other, changed)}
    assert len(paths) == 6
    assert kept.path(scored) == kept.path(group)


def test_layers_that_run_again_within_a_budget_give_the_same_loss_curve(finished, root):
    _, history = finished
    whole = TrainingRun(planted.settings(root, "measured"), root / "none", "").method.store
    groups = prepare_groups(
        planted.settings(root), AutoTokenizer.from_pretrained(planted.settings(root).base)
    ).groups()
    all_of_it = whole.whole_work(groups).num_bytes
    whole.keep_no_forked()
    least = whole.whole_work(groups).num_bytes
    assert least < 0.7 * all_of_it
    budget = (least + all_of_it) / 2 / GIB
    run = TrainingRun(planted.settings(root, "again", cache_gib=budget), root / "small", "")
    run.train()
    stored = [path.stat().st_size for path in (root / "small" / "forks").rglob("*.safetensors")]
    assert sum(stored) - 1000 * len(stored) < least < budget * GIB
    again = json.loads((root / "again" / "history.json").read_text())
    for one, other in zip(history, again, strict=True):
        assert one.get("loss", 0.0) == pytest.approx(other.get("loss", 0.0), rel=1e-4)
    with pytest.raises(ValueError, match=r"--cache-gib .*--uncached"):
        TrainingRun(planted.settings(root, "refused", cache_gib=least / 2 / GIB), root / "no", "")
    assert not (root / "refused.run" / "settings.json").exists()


def test_what_the_disk_has_no_room_for_is_refused_before_the_base_is_loaded(root, monkeypatch):
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"fork activations: .*--cache-gib.*--uncached"):
        TrainingRun(planted.settings(root, "full"), root / "no room", "")


def test_a_loss_does_not_depend_on_how_its_batch_is_split(model, prepared, root, tmp_path):
    store = TrainingStore(model, tiny.tokenizer(), planted.settings(root), tmp_path, "weights")
    store.build(prepared.train[:5], 0, 1, lambda *_: None, with_targets=True)
    w = draw_preferences(4, 2, torch.Generator().manual_seed(0))
    batch = [
        PairExample(store.responses(g, with_targets=True), g.scores, w) for g in prepared.train[:5]
    ]
    objective = PreferenceObjective(model, Recipe(candidates=8))
    whole = objective(batch, 5)
    parts = objective(batch[:2], 5) + objective(batch[2:], 5)
    assert whole.item() == pytest.approx(parts.item(), rel=1e-5)
    assert whole.item() > 0


def test_psi_is_the_sum_of_the_taken_tokens_features(model, prepared):
    group = prepared.train[0]
    responses = compute_responses(model, [group], 8)[0]
    ids = torch.tensor([group.prompt_ids + group.response_ids[0]])
    h_B, h_T = model.hidden_twice(ids[:, :-1])
    phi = model.features(h_B, h_T, ids[:, 1:, None])[0, :, 0]
    expected = phi[-len(group.response_ids[0]) :].sum(0)
    assert torch.allclose(cached_feature_sums(model, responses)[0], expected, atol=1e-4)


def test_batches_are_a_function_of_their_arguments_and_cover_the_epoch():
    lengths = [n % 7 for n in range(50)]
    one = trainer.epoch_batches(lengths, 8, seed=1, stage=1, epoch=0)
    assert one == trainer.epoch_batches(lengths, 8, seed=1, stage=1, epoch=0)
    assert one != trainer.epoch_batches(lengths, 8, seed=1, stage=1, epoch=1)
    assert sorted(i for batch in one for i in batch) == list(range(50))


def test_the_learning_rate_rises_then_falls_to_almost_nothing():
    rates = [trainer.learning_rate_share(step, 100, 0.1) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert 0 < rates[-1] < 0.02


def test_a_run_learns_a_planted_preference_and_says_so(finished):
    adapter, history = finished
    rows = {row["preference"]: row for row in adapter.config.training["held_out"]}
    assert set(rows) == {*planted.DIMENSIONS, "mixes"}
    assert all(row["trained"]["pairs"] > 0.9 for row in rows.values())
    assert all(row["untrained"]["pairs"] == 0.5 for row in rows.values())
    assert {row["stage"] for row in history} == {1, 2}
    assert [row["step"] for row in history if "loss" not in row] == [0, 0]  # where each stage began
    first = [row["loss"] for row in history if row["stage"] == 1 and row["step"]]
    assert sum(first[-5:]) < sum(first[:5])


def test_heads_only_learn_from_pairs_where_the_fork_is_at_the_top(root):
    settings = planted.settings(root, "top", fork_layer=4)
    adapter = TrainingRun(settings, root / "cache", "pad-vllm train ...").train()
    assert adapter.config.heads_only
    assert load_adapter(root / "top").config.to_json() == adapter.config.to_json()
    rows = {row["preference"]: row for row in adapter.config.training["held_out"]}
    assert all(rows[name]["trained"]["pairs"] > 0.8 for name in planted.DIMENSIONS)


def test_what_comes_out_is_an_adapter_with_its_card_curves_and_history(finished, root):
    adapter, _ = finished
    out = root / "finished"
    loaded = load_adapter(out)
    assert loaded.config.dimensions == planted.DIMENSIONS
    assert torch.equal(loaded.head_B, adapter.head_B)
    assert any(b.abs().max() > 0 for _, b in loaded.lora.weights.values())
    assert "Held-out pairs" in (out / "README.md").read_text()
    assert (out / "curves.png").stat().st_size > 10_000
    assert list((root / "finished.run" / "tensorboard").iterdir())
    assert not (root / "finished.run" / "trunk").exists()


@pytest.mark.parametrize(("stage", "step"), [(1, 3), (1, 8), (2, 4), (2, 9)])
def test_a_run_stopped_anywhere_ends_with_the_same_numbers(finished, root, stage, step):
    adapter, history = finished
    settings = planted.settings(root, f"stopped-{stage}-{step}")

    planted.kill(TrainingRun(settings, root / "cache", "pad-vllm train ..."), stage, step)
    again = TrainingRun(settings, root / "cache", "pad-vllm train ...").train()
    out = root / settings.out
    assert json.loads((out / "history.json").read_text()) == history
    assert again.config.training["held_out"] == adapter.config.training["held_out"]
    planted.require_equal(again, adapter)


def test_a_finished_run_started_again_trains_nothing(finished, root):
    adapter, _ = finished
    run = TrainingRun(planted.settings(root, "finished"), root / "cache", "pad-vllm train ...")
    rows = []
    run.log.write_history_row = lambda row, steps: rows.append(row)
    assert torch.equal(run.train().head_B, adapter.head_B)
    assert not rows


def test_another_runs_checkpoints_are_refused(finished, root):
    settings = planted.settings(root, "finished", recipe={"head_lr": 0.5})
    with pytest.raises(ValueError, match=r"head_lr was 0\.02, now 0\.5.*--restart"):
        TrainingRun(settings, root / "cache", "pad-vllm train ...")


def test_a_stage_ends_when_validation_pairs_no_longer_improve_and_keeps_the_best(root):
    settings = planted.settings(
        root, "early", recipe={"epochs": 40, "head_epochs": 0, "patience": 1, "evaluate_every": 2}
    )
    run = TrainingRun(settings, root / "cache", "pad-vllm train ...")
    run.train()
    state = training_checkpoint.load_newest_checkpoint(run_folder(settings) / "stage1")[2]
    looks = [row["accuracy"] for row in state["history"] if "accuracy" in row]
    means = [sum(look.values()) / len(look) for look in looks]
    assert state["done"]
    assert state["step"] < 40 * 7
    assert max(means) == state["best"] > means[-1] - 1e-9
    best = load_file(run_folder(settings) / "stage1" / "best.safetensors")
    assert torch.equal(best["head_B"], run.model.head_B)


def test_gradient_checkpointing_and_accumulation_change_no_loss(finished, root):
    _, history = finished
    settings = planted.settings(
        root, "frugal", recipe={"checkpointing": True, "micro_groups": 1, "head_epochs": 0}
    )
    TrainingRun(settings, root / "cache", "pad-vllm train ...").train()
    found = json.loads((root / "frugal" / "history.json").read_text())
    for one, other in zip(found[1:], history[1:], strict=False):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-3)


def test_the_base_is_loaded_when_the_engine_that_draws_has_ended(root, monkeypatch):
    events = []
    load = training_run.load_backbone
    monkeypatch.setattr(PairsMethod, "draw", lambda self: events.append("draw"))
    monkeypatch.setattr(
        training_run, "load_backbone", lambda *args: events.append("load") or load(*args)
    )
    run = TrainingRun(planted.settings(root, "order"), root / "cache", "pad-vllm train ...")
    assert events == []
    run.gather()
    assert events == ["draw", "load"]


def test_a_fork_layer_that_the_base_lacks_is_refused_before_anything_is_drawn(root, monkeypatch):
    monkeypatch.setattr(PairsMethod, "draw", lambda self: pytest.fail("drawn"))
    settings = planted.settings(root, "refused", fork_layer=9)
    with pytest.raises(ValueError, match=r"fork_layer 9: this backbone accepts 0\.\.4"):
        TrainingRun(settings, root / "cache", "pad-vllm train ...")
    assert not (run_folder(settings) / "settings.json").exists()


def test_stated_preferences_are_in_the_prompt_and_the_only_ones_trained(root):
    settings = planted.settings(root, text_preferences=2)
    tokenizer = AutoTokenizer.from_pretrained(settings.base)
    prepared = prepare_groups(settings, tokenizer)
    plain = [group for group in prepared.train if group.stated_weights is None]
    stated = [group for group in prepared.train if group.stated_weights is not None]
    assert len(stated) == 2 * len(plain)
    assert all("[Principles]" in tokenizer.decode(group.prompt_ids) for group in stated)
    assert all(max(map(abs, group.stated_weights)) == pytest.approx(1) for group in stated)
    assert {group.prompt_key for group in stated} == {group.prompt_key for group in plain}
    assert not {g.prompt_key for g in stated} & {g.prompt_key for g in prepared.held_out}


def test_no_data_left_for_a_part_is_an_error_that_says_what_to_do(root):
    settings = planted.settings(root, limit=1)
    with pytest.raises(ValueError, match=r"no prompt is left.*--validation and --held-out"):
        prepare_groups(settings, AutoTokenizer.from_pretrained(settings.base))


def test_evaluate_recomputes_the_cards_numbers(finished, root):
    adapter, _ = finished
    base = str(root / "base")
    rows = evaluate_held_out(root / "finished", base, None, root / "cache", [], 0)
    card = adapter.config.training["held_out"]
    for one, other in zip(rows, card, strict=True):
        assert one["preference"] == other["preference"]
        # The adapter on disk keeps its LoRA in 16 bits.
        assert one["trained"]["pairs"] == pytest.approx(other["trained"]["pairs"], abs=0.02)
        assert one["prompted"] == other["prompted"]
        # The prompted base reads few prompts: beside it stands the trained model on the same ones.
        assert one["trained_there"]["count"] == one["prompted"]["count"] <= one["trained"]["count"]


def test_an_unseen_dimension_is_expressed_in_the_trained_ones(finished, root, tmp_path):
    data = tmp_path / "data.jsonl"
    with data.open("w") as file:
        for line in (root / "data.jsonl").read_text().splitlines():
            record = json.loads(line)
            for response in record["responses"]:
                response["scores"]["gloomy"] = -response["scores"]["positive"]
            file.write(json.dumps(record) + "\n")
    found = evaluate_held_out(
        root / "finished", str(root / "base"), [f"jsonl={data}"], root / "cache", ["gloomy"], 20
    )
    assert found[-1]["preference"] == "gloomy (fitted from 20)"
    assert found[-1]["trained"]["pairs"] > 0.9
    with pytest.raises(ValueError, match="trained on it"):
        evaluate_held_out(
            root / "finished", str(root / "base"), None, root / "cache", ["brief"], 20
        )


def test_the_evaluate_command_prints_a_row_a_preference(finished, root, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    evaluate_command(str(root / "finished"), str(root / "base"), cache=root / "cache")
    said = capsys.readouterr().out
    assert re.search(r"positive .*100", said)
    assert "mixes" in said


def test_unseen_mixes_are_mixes_and_lie_apart_from_the_axes():
    *axes, mixes = preferences_to_test(("a", "b", "c"), [torch.zeros(2, 3)])
    assert [one.angle for one in axes] == [0, 0, 0]
    assert ((mixes.w != 0).sum(-1) > 1).all()
    assert mixes.angle > 10


def test_mixes_are_of_dimensions_that_some_prompt_has_scores_for_together():
    scores = [torch.tensor([[0.0, 1.0, torch.nan]]), torch.tensor([[torch.nan, torch.nan, 1.0]])]
    *_, mixes = preferences_to_test(("a", "b", "human"), scores)
    assert (mixes.w[:, 2] == 0).all()
    assert (mixes.w[:, :2] != 0).all()


def test_the_fork_lies_three_quarters_up_unless_said(root):
    backbone = tiny.model("llama")
    settings = dataclasses.replace(planted.settings(root), fork_layer=None)
    assert untrained_persrm(backbone, ("a",), settings).fork_layer == 3


def test_a_base_without_a_chat_template_is_trained_with_a_given_one_which_the_adapter_keeps(root):
    plain = root / "plain"
    shutil.copytree(planted.settings(root).base, plain)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    (plain / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(plain)
    short = {"epochs": 0, "head_epochs": 1}
    settings = dataclasses.replace(planted.settings(root, "kept", recipe=short), base=str(plain))
    with pytest.raises(ValueError, match="plain has no chat template.*--chat-template FILE"):
        TrainingRun(settings, root / "cache", "pad-vllm train ...")
    template = "{{ messages[0]['content'] }}>"
    settings = dataclasses.replace(settings, chat_template=template)
    adapter = TrainingRun(settings, root / "cache", "pad-vllm train ...").train()
    assert load_adapter(root / "kept").config.chat_template == template
    assert "chat_template" not in adapter.config.training["settings"]
    rows = evaluate_held_out(root / "kept", str(plain), None, root / "cache", [], 0)
    held_out = adapter.config.training["held_out"]
    assert [row["prompted"] for row in rows] == [row["prompted"] for row in held_out]
    again = dataclasses.replace(settings, prompted=False)
    rows = (
        TrainingRun(again, root / "cache", "pad-vllm train ...").train().config.training["held_out"]
    )
    assert [row["trained"] for row in rows] == [row["trained"] for row in held_out]
    assert not any("prompted" in row for row in rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 0}, "top_k is 0; accepted: an integer from 1 to 333"),
        ({"beta": 2e6}, "beta is 2000000"),
        ({"dimensions": ("brief", "brief")}, "'brief' is there twice"),
        ({"dimensions": ("brief", "postive")}, "dimension postive: no two responses.*--dimensions"),
    ],
)
def test_what_the_adapters_files_would_refuse_is_refused_before_anything_is_trained(
    root, changes, message
):
    settings = dataclasses.replace(planted.settings(root, "refused"), **changes)
    with pytest.raises(ValueError, match=message):
        TrainingRun(settings, root / "cache", "pad-vllm train ...")
    assert not (run_folder(settings) / "settings.json").exists()


def test_a_folder_that_an_adapter_may_not_replace_is_refused_before_anything_is_trained(root):
    settings = planted.settings(root, "mine")
    (root / "mine").mkdir()
    (root / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"thesis\.tex.*Save into a new folder"):
        TrainingRun(settings, root / "cache", "pad-vllm train ...")
