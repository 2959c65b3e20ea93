"""Simulated users, fitted with a prior and alone, and in each form of features: rows and tables."""

from __future__ import annotations

import json

import pytest

from benchmarks.users import choice_forms, shared_tastes

pytestmark = pytest.mark.usefixtures("one_thread")


def run(monkeypatch, tmp_path, script, *options):
    out = tmp_path / "result.json"
    monkeypatch.setattr("sys.argv", ["script", *options, "--out", str(out)])
    script.main()
    return json.loads(out.read_text())


def test_a_prior_is_compared_with_users_alone(monkeypatch, tmp_path):
    sizes = ["--users", "12", "--dimensions", "3", "--choices", "4", "--populations", "2"]
    found = run(monkeypatch, tmp_path, shared_tastes, *sizes, "--shares", "0.5", "0")
    assert [(row["share"], row["choices"]) for row in found["rows"]] == [(0.5, 4), (0.0, 4)]
    for row in found["rows"]:
        assert row["gain"][0] == pytest.approx(row["prior"][0] - row["alone"][0], abs=2e-3)
        assert sum(row["kinds"].values()) == 2
    assert len(found["table"]) == 4


def test_every_form_is_fitted_and_the_chosen_one_is_one_of_them(monkeypatch, tmp_path):
    options = ["--users", "3", "--dimensions", "3", "--choices", "20"]
    found = run(monkeypatch, tmp_path, choice_forms, *options)
    assert [(row["likes"], row["short"]) for row in found["rows"]] == [
        ("mean", False),
        ("mean", True),
        ("sum", False),
        ("sum", True),
    ]
    assert all(sum(row["taken"].values()) == 3 for row in found["rows"])
    assert len(found["table"]) == 6
