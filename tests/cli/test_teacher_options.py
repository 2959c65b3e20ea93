"""`pad-vllm train --teacher` as typed: sentences become a Teacher; wrong combinations have names."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from pad_vllm.cli import app as cli
from pad_vllm.cli import train as train_command
from pad_vllm.training.settings import DistillationSettings

FRIENDLY = ("--dimension", "friendly=Answer in a warm and casual tone: 1 + 1 = 2.")
TAUGHT = ("--teacher", "prompt", *FRIENDLY, "--prompts", "p.txt")
DATA = ("--data", "jsonl=mine.jsonl")


@pytest.fixture
def tried(monkeypatch):
    """The settings whose adapters would have been tried."""
    found = []
    monkeypatch.setattr(train_command, "_try", found.append)
    return found


@pytest.fixture
def asked(monkeypatch, tried):
    """The settings that would have been trained with."""
    found = []
    monkeypatch.setattr(
        train_command, "_train", lambda settings, *rest, **_: found.append(settings)
    )
    return found


def run(*argv):
    arguments = ["train", "base", "--out", "adapter", *argv]
    return CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"})


def test_sentences_and_opposites_become_a_teacher(asked):
    simple = ("--dimension", "simple=Use short words.", "--opposite", "simple=Use long words.")
    result = run(*TAUGHT, *simple, "--answers", "50")
    assert result.exit_code == 0, result.output
    assert asked[0].teacher == DistillationSettings(
        sentences={
            "friendly": "Answer in a warm and casual tone: 1 + 1 = 2.",
            "simple": "Use short words.",
        },
        opposites={"simple": "Use long words."},
        prompts="p.txt",
        answers=50,
    )


def test_a_teacher_has_defaults_of_its_own_and_what_is_typed_wins(asked):
    assert run(*TAUGHT).exit_code == 0
    assert run(*TAUGHT, "--epochs", "1", "--beta", "1", "--recipe", "lora_lr=0.1").exit_code == 0
    assert run(*DATA).exit_code == 0
    own, typed, scored = asked
    assert (own.recipe.epochs, own.recipe.lora_lr, own.head_rank, own.beta) == (4, 2e-4, 128, 0.8)
    assert (typed.recipe.epochs, typed.recipe.lora_lr, typed.head_rank) == (1, 0.1, 128)
    assert typed.beta == 1
    assert own.min_p == 0.15
    assert (scored.recipe.epochs, scored.recipe.lora_lr, scored.head_rank) == (1, 2e-4, 16)
    assert scored.teacher is None


def test_what_sentences_taught_is_tried_unless_one_says_no(asked, tried):
    assert run(*TAUGHT).exit_code == 0
    assert tried == asked
    assert run(*TAUGHT, "--no-trial").exit_code == 0
    assert run(*DATA).exit_code == 0
    assert len(asked) == 3
    assert len(tried) == 1


def test_scores_teach_by_credit_and_have_defaults_of_their_own(asked):
    assert run("--teacher", "scores", *DATA).exit_code == 0
    assert run("--teacher", "pairs", *DATA).exit_code == 0
    by_credit, pairs = asked
    assert by_credit.by_credit
    assert (by_credit.head_rank, by_credit.beta, by_credit.no_repeat) == (128, 0.8, 3)
    assert by_credit.data == ("jsonl=mine.jsonl",)
    assert not pairs.by_credit
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
        ((*TAUGHT, *DATA), "--data is for data that scores dimensions"),
        ((*TAUGHT, "--dimensions", "a"), "--dimensions is for data that scores dimensions"),
        ((*TAUGHT, "--text-preferences", "1"), "--text-preferences is for data"),
        ((*DATA, *FRIENDLY), "--dimension belongs to --teacher prompt"),
        ((*DATA, "--opposite", "a=b"), "--opposite belongs to --teacher prompt"),
        ((*DATA, "--prompts", "p.txt"), "--prompts belongs to --teacher prompt"),
        ((*DATA, "--answers", "3"), "--answers belongs to --teacher prompt"),
        (("--teacher", "prompt", "--prompts", "p.txt"), "has no dimension to teach"),
        ((*TAUGHT, "--opposite", "cold=Be cold."), "there is no --dimension cold"),
        ((*TAUGHT, *FRIENDLY), "--dimension friendly is given twice"),
        ((*TAUGHT, "--dimension", "kind"), '--dimension kind=: NAME="A SENTENCE" is accepted'),
        ((*TAUGHT, "--dimension", "a b=Be kind."), "NAME a letter, then letters, digits"),
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
    assert "With --teacher prompt: a dimension and the sentence BASE is told for it" in said
