"""`pad-vllm train --teacher` as typed: instructions become settings; wrong combinations are named."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from pad_vllm.cli import app as cli
from pad_vllm.cli import train as train_command
from pad_vllm.training.settings import DistillationSettings, PrefixSettings

FRIENDLY = ("--dimension", "friendly=Answer in a warm and casual tone: 1 + 1 = 2.")
PROMPT = ("--teacher", "prompt", *FRIENDLY, "--prompts", "p.txt")
DATA = ("--data", "jsonl=mine.jsonl")


@pytest.fixture
def asked(monkeypatch):
    """The settings that would have been trained with."""
    found = []
    monkeypatch.setattr(
        train_command, "_train", lambda settings, *rest, **_: found.append(settings)
    )
    return found


def run(*argv):
    arguments = ["train", "base", "--out", "adapter", *argv]
    return CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"})


def test_instructions_and_opposites_become_settings(asked):
    simple = ("--dimension", "simple=Use short words.", "--opposite", "simple=Use long words.")
    result = run(*PROMPT, *simple, "--answers", "50")
    assert result.exit_code == 0, result.output
    assert asked[0].method == "prompt"
    assert asked[0].teacher == DistillationSettings(
        sentences={
            "friendly": "Answer in a warm and casual tone: 1 + 1 = 2.",
            "simple": "Use short words.",
        },
        opposites={"simple": "Use long words."},
        prompts="p.txt",
        answers=50,
    )


def test_gates_are_there_unless_they_are_not_wanted(asked):
    for typed in ((), ("--gate",), ("--no-gate",)):
        assert run(*PROMPT, *typed).exit_code == 0
    assert [one.teacher.gate for one in asked] == [True, True, False]


def test_learned_prefixes_are_asked_for_by_a_flag(asked):
    assert run(*PROMPT).exit_code == 0
    assert run(*PROMPT, "--prefix").exit_code == 0
    typed = ("--prefix-tokens", "16", "--prefix-fork-layer", "3", "--prefix-epochs", "1")
    assert run(*PROMPT, "--prefix", *typed).exit_code == 0
    assert [one.teacher.prefix for one in asked] == [
        None,
        PrefixSettings(),
        PrefixSettings(tokens=16, fork_layer=3, epochs=1),
    ]


def test_method_prompt_has_defaults_of_its_own_and_what_is_typed_wins(asked):
    assert run(*PROMPT).exit_code == 0
    assert run(*PROMPT, "--epochs", "1", "--beta", "1", "--recipe", "lora_lr=0.1").exit_code == 0
    assert run(*DATA).exit_code == 0
    own, typed, scored = asked
    assert (own.recipe.epochs, own.recipe.lora_lr, own.head_rank, own.beta) == (4, 2e-4, 128, 0.8)
    assert (typed.recipe.epochs, typed.recipe.lora_lr, typed.head_rank) == (1, 0.1, 128)
    assert typed.beta == 1
    assert own.min_p == 0.15
    assert (scored.recipe.epochs, scored.recipe.lora_lr, scored.head_rank) == (1, 2e-4, 16)
    assert scored.teacher is None


@pytest.mark.parametrize("option", ["--trial", "--no-trial"])
def test_the_trial_of_older_versions_is_accepted_and_said_to_be_gone(asked, option):
    for arguments in (PROMPT, DATA):
        result = run(*arguments, option)
        assert result.exit_code == 0
        assert result.stderr.count("\n") == 1
        assert "--trial and --no-trial have no effect" in result.stderr
    assert len(asked) == 2
    assert not run(*PROMPT).stderr
    assert "--no-trial" not in run("--help").output


def test_method_scores_has_defaults_of_its_own(asked):
    assert run("--teacher", "scores", *DATA).exit_code == 0
    assert run("--teacher", "pairs", *DATA).exit_code == 0
    scores, pairs = asked
    assert scores.method == "scores"
    assert (scores.head_rank, scores.beta, scores.no_repeat) == (128, 0.8, 3)
    assert scores.data == ("jsonl=mine.jsonl",)
    assert pairs.method == "pairs"
    assert (pairs.head_rank, pairs.beta, pairs.no_repeat) == (16, 1.0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--teacher", "scores", *DATA, *FRIENDLY), "--dimension belongs to --teacher prompt"),
        (("--teacher", "scores"), "nothing to learn from: give --data NAME[=PATH]"),
        ((), "nothing to learn from: give --data NAME[=PATH], or --teacher prompt"),
        (
            ("--teacher", "gpt", *FRIENDLY),
            "--teacher gpt: one of pairs, scores, prompt is accepted",
        ),
        ((*PROMPT, *DATA), "--data is for data that scores dimensions"),
        ((*PROMPT, "--dimensions", "a"), "--dimensions is for data that scores dimensions"),
        ((*PROMPT, "--text-preferences", "1"), "--text-preferences is for data"),
        ((*DATA, *FRIENDLY), "--dimension belongs to --teacher prompt"),
        ((*DATA, "--opposite", "a=b"), "--opposite belongs to --teacher prompt"),
        ((*DATA, "--prompts", "p.txt"), "--prompts belongs to --teacher prompt"),
        ((*DATA, "--answers", "3"), "--answers belongs to --teacher prompt"),
        (("--teacher", "prompt", "--prompts", "p.txt"), "has no dimension to teach"),
        ((*PROMPT, "--opposite", "cold=Be cold."), "there is no --dimension cold"),
        ((*PROMPT, *FRIENDLY), "--dimension friendly is given twice"),
        ((*PROMPT, "--dimension", "kind"), '--dimension kind=: NAME="A SENTENCE" is accepted'),
        ((*PROMPT, "--dimension", "a b=Be kind."), "NAME a letter, then letters, digits"),
        ((*DATA, "--prefix"), "--prefix belongs to --teacher prompt"),
        ((*DATA, "--no-gate"), "--gate belongs to --teacher prompt"),
        (("--teacher", "scores", *DATA, "--gate"), "--gate belongs to --teacher prompt"),
        ((*PROMPT, "--prefix-tokens", "16"), "--prefix-tokens is a choice of --prefix: add it"),
        ((*PROMPT, "--prefix-fork-layer", "3"), "--prefix-fork-layer is a choice of --prefix"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(asked, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert not asked


def test_the_help_says_which_option_is_for_which_way_of_training():
    said = " ".join(run("--help").output.replace("│", " ").split())
    assert "With --data: some of the dimensions that it scores" in said
    assert (
        "With --teacher prompt: a dimension and the instruction that BASE is given for it" in said
    )
