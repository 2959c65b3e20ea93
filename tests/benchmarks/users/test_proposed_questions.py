"""Strategies of asking on few users; human pairs by form; the limits of choices on planted likings."""

from __future__ import annotations

import json

import pytest
import torch
from scripted_engine import count_words

from benchmarks.users import choice_limits, human_choices, proposed_questions, user_tastes
from pad_vllm.choices.choice_form import FORMS, AnswerPairs

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_strategy_is_measured_in_every_population(monkeypatch, tmp_path):
    out = tmp_path / "result.json"
    sizes = ["--users", "4", "--dimensions", "3", "--choices", "2", "4"]
    monkeypatch.setattr("sys.argv", ["script", *sizes, "--out", str(out)])
    monkeypatch.setattr(proposed_questions, "OTHERS", 12)
    monkeypatch.setattr(proposed_questions, "CHOICES_OF_OTHERS", 4)
    proposed_questions.main()
    found = json.loads(out.read_text())
    assert len(found["rows"]) == len(proposed_questions.POPULATIONS) * 7
    assert all(set(row["cosines"]) == {"2", "4"} for row in found["rows"])
    assert len(found["table"]) == len(found["rows"]) + 2


def test_the_taste_itself_tells_85_percent_of_random_choices():
    tastes = proposed_questions.Population("x").tastes(300, 12, seed=0)
    length = proposed_questions.firmness(tastes)
    assert length == pytest.approx(8.0, abs=0.5)


def test_human_pairs_are_told_by_every_form_and_by_length():
    source = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 60, (60, 2), generator=source)
    features = torch.randn(60, 2, 3, generator=source)
    features[:, 0, 0] += 3
    pairs = AnswerPairs(features * lengths.unsqueeze(-1), lengths)
    row = human_choices.result_row("x", pairs, 30, 4)
    assert set(row["told"]) == {*FORMS, "length", "chosen"}
    assert row["told"]["mean"][0] > 0.85
    assert 0.3 < row["told"]["length"][0] < 0.7
    assert sum(row["taken"].values()) == 4
    assert len(human_choices.table([row])) == 3


def test_fitted_weights_come_nearer_to_the_best_ones_with_more_choices(monkeypatch):
    monkeypatch.setattr(choice_limits, "DRAWS", 4)
    users, source = choice_limits.tastes(3), torch.Generator().manual_seed(0)
    weights = torch.stack((torch.eye(3), -torch.eye(3)), 1).flatten(0, 1).double()

    def likings(prompts):
        features = weights.unsqueeze(1) + torch.randn(6, prompts, 3, generator=source).double()
        return torch.einsum("ud,cpd->ucp", users, features)

    test = choice_limits.TestAnswers(weights, likings(200), torch.eye(3).double())
    offers = {"single": choice_limits.Offer(weights, likings(50))}
    row, _ = choice_limits.result_rows("planted", offers, test, users, [5, 80])
    assert row["cosines"]["80"][0] > row["cosines"]["5"][0] + 0.2
    assert row["taste"][0] > 0.95
    assert row["wins"]["80"][0] == pytest.approx(row["wins_best"][0], abs=0.05)
    assert len(choice_limits.table([row])) == 4


def test_the_script_draws_two_batches_and_fits_users_of_both_kinds(scripted_engine, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(user_tastes, "embed", count_words)
    monkeypatch.setattr(choice_limits, "DRAWS", 2)
    found = scripted_engine.run(
        monkeypatch, choice_limits.main, "--learn", "4", "--choices", "4", "30"
    )
    assert [(r["users"], r["pairs"], r["fitted"]) for r in found["rows"]][:2] == [
        ("meaning", "single", "weights"),
        ("meaning", "single", "rewards"),
    ]
    assert len(found["rows"]) == 2 * len(choice_limits.OFFERS) * 2
    first = found["rows"][0]
    assert first["told"][0] > 0.5
    assert first["cosines"]["30"][0] > first["cosines"]["4"][0]
    _, answers = scripted_engine.batches
    assert len(answers.conditions) == 1 + 6 + 8 + 8
