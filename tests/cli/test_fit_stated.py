"""`pad-vllm fit` with what is known before any choice: a sentence, a file on people, both."""

from __future__ import annotations

import json
import re

import pytest
import tiny
from fit_runs import fit_runner, write_lines

from pad_vllm.choices.taste_prior import MIN_USERS
from pad_vllm.cli import fit as fit_command

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("helpful", "brief", "humor")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stated")
    base = tiny.checkpoint("llama", folder / "base")
    return base, tiny.write_adapter(base, folder / "adapter", fork_layer=2, std=0.1)


@pytest.fixture
def run(folders, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return fit_runner(*folders)


def choice(better, other, **more):
    texts = {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}
    return {**texts, "chosen_weights": better, "rejected_weights": other, **more}


def weights(result):
    text = re.search(r'^pad_weights: "(.*)"', result.stdout, re.MULTILINE)[1]
    return {name: float(x) for name, x in (pair.split("=") for pair in text.split(","))}


def test_a_sentence_is_weights_without_any_choice_and_choices_correct_it(run, tmp_path):
    out = tmp_path / "fit.json"
    alone = run("--sentence", "Be brief.", "--out", out)
    assert alone.exit_code == 0, alone.output
    assert set(weights(alone)) == set(NAMES)
    assert max(map(abs, weights(alone).values())) == 1.0
    written = json.loads(out.read_text())
    assert written["stated"]["sentence"] == "Be brief."
    assert written["pad_weights"] == written["stated"]["pad_weights"]
    largest = max(NAMES, key=lambda name: abs(weights(alone)[name]))
    sign = 1 if weights(alone)[largest] > 0 else -1
    against = [choice(f"{largest}={-sign}", f"{largest}={sign}")] * 15
    both = run(write_lines(tmp_path / "c.jsonl", against), "--sentence", "Be brief.")
    assert both.exit_code == 0, both.output
    assert weights(both)[largest] * sign < 0


def test_what_many_users_share_stands_before_anothers_choices(run, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_command, "_load_model", None)
    pairs = [("brief=1", "humor=1"), ("brief=1", "brief=-1"), ("helpful=1", "helpful=-1")]
    rows = [choice(*pair, user=f"u{u}") for u in range(MIN_USERS) for pair in pairs]
    people = tmp_path / "people.jsonl"
    assert run(write_lines(tmp_path / "many.jsonl", rows), "--out", people).exit_code == 0
    one = write_lines(tmp_path / "one.jsonl", [choice("humor=1", "humor=-1")] * 2)
    told, alone = run(one, "--prior", people), run(one)
    assert told.exit_code == 0, told.output
    assert weights(told)["brief"] > 0.2
    assert weights(alone)["brief"] == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "Hi", "chosen": "a", "rejected": "b"}] * 2, "does not say what guided"),
        ([choice("brief=1", None, user="a")] * 2, "--sentence is one person's"),
        ([], "0 choices; accepted: at least 2"),
    ],
)
def test_choices_that_a_sentence_cannot_stand_before_are_refused(
    run, tmp_path, monkeypatch, rows, message
):
    monkeypatch.setattr(fit_command, "_load_model", None)
    result = run(write_lines(tmp_path / "c.jsonl", rows), "--sentence", "Be brief.")
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())


def test_neither_choices_nor_a_sentence_is_refused(run):
    result = run()
    assert result.exit_code == 1
    assert "--sentence without CHOICES" in " ".join(result.stderr.split())
