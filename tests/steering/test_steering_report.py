"""`pad-vllm steer` on a tiny model, its engine a fake: every condition, the file, and the old spelling."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tiny

from pad_vllm.adapter.adapter_folder import load_adapter, save_adapter
from pad_vllm.cli import shared_options
from pad_vllm.cli.app import app
from pad_vllm.steering import answer_file, dimension_judges, steering_metrics, steering_report
from pad_vllm.steering.guided_answers import DecodingSettings, DrawnAnswer
from pad_vllm.text.conversation import Conversation
from pad_vllm.text.prompt_digests import digest_prompts

INSTRUCTIONS = {"warm": "be warm", "brief": "be brief"}


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """A tiny base, an adapter that was trained from instructions, and the batches that a fake engine got."""
    base = tiny.checkpoint("llama", tmp_path / "base")
    plain = tiny.write_adapter(
        base, tmp_path / "plain", fork_layer=2, std=0.1, dimensions=tuple(INSTRUCTIONS)
    )
    loaded = load_adapter(plain)
    rows = [{"dimension": name, "sentences": [text]} for name, text in INSTRUCTIONS.items()]
    config = dataclasses.replace(loaded.config, training={"taught": rows})
    save_adapter(dataclasses.replace(loaded, config=config), tmp_path / "instructed", "x")
    batches = []

    def answers(batch):
        prompts, conditions, decodings = batch.prompts, batch.conditions, batch.decodings
        batches.append((batch.adapter, [c.name for c in conditions]))
        return [
            [
                [DrawnAnswer(f"answer {c.beta} {c.instruction}", (5, 6, 7))] * len(prompts)
                for c in conditions
            ]
            for _ in decodings
        ]

    monkeypatch.setattr(answer_file, "draw_answers", answers)
    monkeypatch.setattr(dimension_judges, "draw_answers", answers)
    for module in (dimension_judges, steering_metrics):
        monkeypatch.setattr(
            module, "embed", lambda texts: np.array([[len(t), "be" in t] for t in texts], float)
        )
    return base, tmp_path / "instructed", batches


def test_by_default_the_prompts_that_ship_are_answered(monkeypatch, adapter, tmp_path):
    from typer.testing import CliRunner

    from pad_vllm.steering import steering_report

    base, folder, _ = adapter
    measured = []
    monkeypatch.setattr(
        steering_report, "measure_steering", lambda settings, *_: measured.append(settings) or {}
    )
    for flags in ([], ["--no-meaning"]):
        result = CliRunner().invoke(app, ["steer", str(folder), "--base", str(base), *flags])
        assert result.exit_code == 0, result.output
    assert [len(one.prompts) for one in measured] == [60, 60]
    assert [len(one.judge_prompts) for one in measured] == [40, 0]


def test_all_conditions_and_judges_are_in_the_file(adapter, tmp_path):
    pytest.importorskip("sklearn")
    from typer.testing import CliRunner

    base, folder, batches = adapter
    prompts, others = tmp_path / "prompts.txt", tmp_path / "others.txt"
    prompts.write_text("one\ntwo\nthree\n")
    others.write_text("".join(f"other {i}\n" for i in range(8)))
    arguments = ["steer", str(folder), "--base", str(base), "--prompts", str(prompts)]
    arguments += ["--judge-prompts", str(others), "--beside", f"again={folder}", "--beta", "2"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out.json")])
    assert result.exit_code == 0, result.output
    assert batches[0][1][:3] == ["unguided", "told warm", "told brief"]
    stored = json.loads((tmp_path / "out.json").read_text())
    assert set(stored["judges"]) == set(INSTRUCTIONS)
    assert [one["temperature"] for one in stored["decodings"]] == [0.0, 0.7]
    records = {r["name"]: r for r in stored["decodings"][0]["records"]}
    assert {
        "PAD +warm",
        "PAD -brief",
        "PAD +warm+brief",
        "told and PAD +warm",
        "again +warm",
    } <= set(records)
    assert set(records["PAD +warm"]["wins"]["warm"]) == {"meaning", "teacher"}
    assert set(records["PAD +brief"]["wins"]["brief"]) == {"brief", "meaning", "teacher"}
    assert len(stored["decodings"][0]["texts"]["unguided"]) == 3
    assert (folder / "README.md").read_text() == "x"

    batches.clear()
    again = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out.json")])
    assert again.exit_code == 0, again.output
    assert [folder for folder, _ in batches] == [None]  # the judges' answers alone
    assert json.loads((tmp_path / "out.json").read_text())["decodings"] == stored["decodings"]


def test_prompts_that_were_trained_on_are_refused_before_anything_is_drawn(adapter, tmp_path):
    from typer.testing import CliRunner

    base, folder, batches = adapter
    loaded = load_adapter(folder)
    data = {"trained_prompts": digest_prompts(["two"])}
    config = dataclasses.replace(loaded.config, training=loaded.config.training | {"data": data})
    save_adapter(dataclasses.replace(loaded, config=config), tmp_path / "recorded", "x")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\nTwo\n")
    arguments = [
        "steer",
        str(tmp_path / "recorded"),
        "--base",
        str(base),
        "--prompts",
        str(prompts),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "1 of its 2 prompts" in " ".join(result.output.split())
    assert batches == []


def test_a_judge_that_taught_is_marked_in_the_table(adapter, tmp_path):
    settings = steering_report.SteeringSettings(
        base=str(adapter[0]),
        adapter=str(adapter[1]),
        prompts=[Conversation.model_validate("one")],
        mixes=False,
        on_top=False,
        decodings=(DecodingSettings(),),
    )
    lines = []
    found = steering_report.measure_steering(settings, lines.append)
    assert found["taught"] == {"warm": ["teacher"], "brief": ["teacher"]}
    row = next(line for line in found["decodings"][0]["table"] if "PAD +brief" in line)
    assert "teacher* " in row
    assert "brief* " not in row
    assert any("does not record which prompts" in line for line in lines)


def test_learned_prefixes_are_conditions_of_an_engine_that_reads_them(tmp_path):
    base = tiny.checkpoint("llama", tmp_path / "base")
    layers, names = tiny.COMMON["num_hidden_layers"], ("warm", "curt")
    folder = tiny.write_adapter(
        base, tmp_path / "a", fork_layer=layers, std=0.1, dimensions=names, prefixes=("warm",)
    )
    settings = steering_report.SteeringSettings(
        base=str(base), adapter=str(folder), prompts=(), prefix_betas=(1.0, 2.0), mixes=False
    )
    config = load_adapter(folder).config
    (conditions,) = steering_report.conditions_by_adapter(settings, config, {}).values()
    of_prefixes = [c for c in conditions if c.name.startswith("prefix")]
    assert [(c.name, c.beta, dict(c.aims)) for c in of_prefixes] == [
        ("prefix +warm", 1.0, {"warm": 1}),
        ("prefix -warm", 1.0, {"warm": -1}),
        ("prefix +warm", 2.0, {"warm": 1}),
        ("prefix -warm", 2.0, {"warm": -1}),
    ]
    assert of_prefixes[3].extra_args() == {"pad_preference": "warm", "pad_beta": -2.0}
    elsewhere = dataclasses.replace(settings, engine="resident")
    (others,) = steering_report.conditions_by_adapter(elsewhere, config, {}).values()
    assert not any(c.name.startswith("prefix") for c in others)


def test_another_base_is_guided_by_an_engine_with_a_backbone_of_its_own(
    adapter, tmp_path, monkeypatch
):
    from typer.testing import CliRunner

    base, folder, _ = adapter
    (tmp_path / "prompts.txt").write_text("one\n")
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (tmp_path / "plain.jinja").write_text(template)
    answer, seen = answer_file.draw_answers, []
    monkeypatch.setattr(
        answer_file, "draw_answers", lambda batch: seen.append(batch) or answer(batch)
    )
    resolved = []
    monkeypatch.setattr(shared_options, "resolve_base", resolved.append)

    def steer(*more):
        argv = [
            "steer",
            str(folder),
            "--base",
            str(base),
            "--prompts",
            tmp_path / "prompts.txt",
        ]
        argv += ["--no-mixes", "--no-on-top", "--temperature", "0", *more]
        return CliRunner().invoke(app, [*map(str, argv)])

    result = steer("--engine", "resident", "--chat-template", tmp_path / "plain.jinja")
    assert result.exit_code == 0, result.output
    assert seen[0].engine_settings == {"engine": "resident", "chat_template": template}
    assert seen[0].decodings[0].chat_template == template
    # Fetched before the engine starts.
    assert resolved == [load_adapter(folder).config.backbone.name]
    assert steer().exit_code == 0
    assert seen[1].engine_settings == {}
    assert "accepted are shared, resident, ray" in steer("--engine", "vector").output


def test_results_go_into_the_card_and_an_instruction_may_be_given_for_a_dimension(
    adapter, tmp_path
):
    from typer.testing import CliRunner

    base, folder, batches = adapter
    loaded = load_adapter(folder)
    config = dataclasses.replace(loaded.config, training={})
    save_adapter(dataclasses.replace(loaded, config=config), folder, "x")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n")
    arguments = ["steer", str(folder), "--base", str(base), "--prompts", str(prompts), "--card"]
    result = CliRunner().invoke(app, [*arguments, "--told", "warm=Be warm.", "--no-mixes"])
    assert result.exit_code == 0, result.output
    names = batches[0][1]
    assert "told warm" in names
    assert "told brief" not in names
    card = (folder / "README.md").read_text()
    assert "## Steering" in card
    assert "| told warm |" in card
    assert "told and PAD +warm" in names
    batches.clear()
    result = CliRunner().invoke(app, [*arguments, "--told", "warm=Be warm.", "--no-on-top"])
    assert result.exit_code == 0, result.output
    assert not [name for name in batches[0][1] if name.startswith("told and")]
    assert "teacher" in result.output
    without_teacher = [*arguments, "--told", "warm=Be warm.", "--no-on-top", "--no-teacher"]
    result = CliRunner().invoke(app, without_teacher)
    assert result.exit_code == 0, result.output
    assert "teacher" not in result.output
    result = CliRunner().invoke(app, [*arguments, "--told", "cold=Be cold."])
    assert result.exit_code == 1
    assert "--told cold: the adapter has no such dimension, only warm, brief" in result.output


def test_an_adapter_beside_it_has_a_name_and_a_folder(adapter, tmp_path):
    from typer.testing import CliRunner

    base, folder, _ = adapter
    (tmp_path / "p.txt").write_text("one\n")
    arguments = [
        "steer",
        str(folder),
        "--base",
        str(base),
        "--prompts",
        str(tmp_path / "p.txt"),
    ]
    result = CliRunner().invoke(app, [*arguments, "--beside", "nameless"])
    assert result.exit_code == 1
    assert "NAME=ADAPTER is accepted" in result.output


def test_the_old_spelling_does_the_same_and_says_what_it_is_now(adapter, tmp_path):
    from typer.testing import CliRunner

    base, folder, batches = adapter
    (tmp_path / "p.txt").write_text("one\n")
    options = ["--base", str(base), "--no-mixes", "--temperature", "0", "--beta", "2"]
    options += ["--no-meaning"]
    now = ["steer", str(folder), "--prompts", str(tmp_path / "p.txt"), *options]
    before = ["evaluate", str(folder), "--steering", str(tmp_path / "p.txt"), *options]
    new, old = (CliRunner().invoke(app, arguments) for arguments in (now, before))
    assert (new.exit_code, old.exit_code) == (0, 0)
    assert "evaluate" not in new.stderr
    assert "is `pad-vllm steer ADAPTER --prompts FILE` now" in old.stderr
    assert old.stdout == new.stdout
    assert batches[0] == batches[1]
    assert "--steering" not in CliRunner().invoke(app, ["evaluate", "--help"]).output
