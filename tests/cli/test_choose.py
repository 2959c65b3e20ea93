"""A person's choices on the terminal: what is shown, what is written, and that `fit` reads it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.cli import app as cli
from pad_vllm.training.user_choices import read_choices


def sample(number):
    guides = ("friendly=1", "brief=1,friendly=-0.5")
    responses = [
        {"text": f"[{n}] to {number}", "token_ids": [1], "guided_by": {"pad_weights": guide}}
        for n, guide in enumerate(guides)
    ]
    return {"prompt": f"question {number}", "responses": responses}


@pytest.fixture
def files(tmp_path):
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps(sample(n)) + "\n" for n in range(4)), "utf-8")
    return samples, tmp_path / "choices.jsonl"


def run(*argv, typed=""):
    return CliRunner().invoke(cli.app, list(map(str, argv)), input=typed)


def test_choices_are_kept_with_what_guided_them_and_the_rest_is_asked_the_next_time(files):
    samples, out = files
    result = run("choose", samples, "--out", out, typed="1\nx\n2\ns\nq\n")
    assert result.exit_code == 0, result.output
    assert "[0] to 0" in result.output
    assert "friendly" not in result.output
    assert "2 choices made, 0 were there before" in result.output
    first, second = read_choices(out)
    assert (first.chosen, first.rejected) == ("[0] to 0", "[1] to 0")
    assert first.answer_weights == ("friendly=1", "brief=1,friendly=-0.5")
    assert second.answer_weights == first.answer_weights[::-1]

    again = run("choose", samples, "--out", out, typed="1\n1\n")
    assert "1 of 2" in again.output
    assert "2 choices made, 2 were there before" in again.output
    assert [choice.prompt[0].content for choice in read_choices(out)] == [
        f"question {n}" for n in range(4)
    ]


def test_what_was_chosen_is_what_fit_reads(files):
    samples, out = files
    run("choose", samples, "--out", out, typed="1\n" * 4)
    result = run("fit", "smollm2-135m", out, "--adapter", resolve_adapter("demo"))
    assert result.exit_code == 0, result.output
    weights = result.output.splitlines()[-1].split('"')[1]
    found = {name: float(w) for name, w in (pair.split("=") for pair in weights.split(","))}
    assert found["friendly"] > 0 > found["brief"]
    assert found["positive"] == found["simple"] == 0


def test_answers_that_nothing_guided_are_chosen_between_too(files):
    samples, out = files
    plain = {"prompt": "Hi", "responses": [{"text": "Hello."}, {"text": "Hi!"}]}
    samples.write_text(json.dumps(plain), "utf-8")
    run("choose", samples, "--out", out, typed="2\n")
    (choice,) = read_choices(out)
    assert (choice.chosen, choice.answer_weights) == ("Hi!", None)


def test_a_file_that_holds_no_samples_is_refused(files):
    samples, out = files
    samples.write_text('{"prompt": "Hi"}\n', "utf-8")
    result = run("choose", samples, "--out", out)
    assert result.exit_code == 1
    assert "samples.jsonl, line 1: responses" in result.output


def test_each_user_is_asked_every_question_and_choices_say_whose_they_are(files):
    samples, out = files
    run("choose", samples, "--out", out, "--user", "ann", typed="1\n1\nq\n")
    other = run("choose", samples, "--out", out, "--user", "bob", typed="2\n" * 4)
    assert "1 of 4" in other.output
    assert "4 choices made, 0 were there before" in other.output
    assert [choice.user for choice in read_choices(out)] == ["ann"] * 2 + ["bob"] * 4
    again = run("choose", samples, "--out", out, "--user", "ann", typed="q\n")
    assert "1 of 2" in again.output


def test_choices_with_a_user_and_without_do_not_share_a_file(files):
    samples, out = files
    run("choose", samples, "--out", out, "--user", "ann", typed="1\nq\n")
    before = out.read_text()
    refused = run("choose", samples, "--out", out, typed="1\n" * 4)
    assert refused.exit_code == 1
    assert "--user" in refused.output
    assert out.read_text() == before
