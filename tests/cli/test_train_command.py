"""`pad-vllm train` as typed: what becomes of its arguments, and what is refused before anything runs."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from pad_vllm import opened_base
from pad_vllm.cli import app as cli
from pad_vllm.cli import train as train_command
from pad_vllm.training.settings import Recipe, Settings


@pytest.fixture
def asked(monkeypatch):
    """The settings that would have been trained with."""
    found = []
    monkeypatch.setattr(
        train_command, "_train", lambda settings, *rest, **named: found.append((settings, *rest))
    )
    return found


def run(*argv):
    arguments = ["train", "base", "--data", "jsonl=mine.jsonl", "--out", "adapter", *argv]
    return CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"})


def test_arguments_become_settings(asked):
    result = run(
        "--dimensions", "kind, brief", "--epochs", "2", "--recipe", "b=0.2", "--workers", "2"
    )
    assert result.exit_code == 0, result.output
    settings, _, workers, address = asked[0]
    assert settings.dimensions == ("kind", "brief")
    assert (settings.recipe.epochs, settings.recipe.b) == (2, 0.2)
    assert (workers, address) == (2, None)


@pytest.mark.parametrize("fast", ["float32", "bfloat16"])
def test_without_options_the_defaults_are_those_of_settings_and_of_the_machine(
    asked, monkeypatch, fast
):
    monkeypatch.setattr(opened_base, "default_dtype", lambda device: fast)
    assert run().exit_code == 0
    assert run("--dtype", "float32", "--vllm", "gpu_memory_utilization=0.8").exit_code == 0
    assert asked[0][0] == Settings("base", ("jsonl=mine.jsonl",), "adapter", dtype=fast)
    assert (asked[1][0].dtype, asked[1][0].vllm) == ("float32", {"gpu_memory_utilization": 0.8})
    assert "NAME=VALUE is accepted" in run("--vllm", "quantization").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--recipe", "learning_rate=1"), "NAME one of epochs, head_epochs"),
        (("--recipe", "b=much"), "VALUE a number"),
        (("--recipe", "checkpointing=yes"), "true or false"),
        (("--recipe", "groups=0"), "groups: Input should be greater than or equal to 1"),
        (("--recipe", "evaluate_every=0"), "greater than or equal to 1"),
        (("--recipe", "validation_prompts=0"), "greater than or equal to 1"),
        (("--recipe", "candidates=1"), "greater than or equal to 2"),
        (("--recipe", "lora_lr=nan"), "lora_lr: Input should be a finite number"),
        (("--beta", "inf"), "beta: Input should be a finite number"),
        (("--epochs", "0", "--head-epochs", "0"), "nothing would be trained"),
        (("--dtype", "int8"), "float32 and bfloat16 are accepted"),
        (("--validation", "0.5", "--held-out", "0.5"), "something is left to train on"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_is_accepted(asked, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert not asked


def test_a_recipe_choice_takes_its_fields_type(asked):
    assert run("--recipe", "checkpointing=true", "--recipe", "groups=3").exit_code == 0
    recipe = asked[0][0].recipe
    assert recipe.checkpointing is True
    assert recipe.groups == 3


def test_settings_survive_json_and_are_named_by_all_but_where_they_go():
    settings = Settings("base", ("a", "b"), "out", dimensions=("x",), recipe=Recipe(b=0.3))
    again = Settings.from_dict(settings.as_dict())
    assert again == settings
    assert (
        Settings("base", ("a", "b"), "elsewhere").digest()
        == Settings("base", ("a", "b"), "out").digest()
    )
    assert settings.digest() != Settings("base", ("a", "b"), "out").digest()


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch):
    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'ray'", name="ray.train")

    monkeypatch.setattr(train_command, "_train", missing)
    result = run("--workers", "2")
    assert result.exit_code == 1
    assert "pip install 'pad-vllm[ray]'" in result.output


def test_a_chat_templates_text_is_a_setting_so_that_other_machines_have_it_too(asked, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages }}", "utf-8")
    assert run("--chat-template", str(file)).exit_code == 0
    assert asked[0][0].chat_template == "{{ messages }}"
    result = run("--chat-template", "missing.jinja")
    assert result.exit_code == 1
    assert "--chat-template is 'missing.jinja'" in " ".join(result.output.split())
