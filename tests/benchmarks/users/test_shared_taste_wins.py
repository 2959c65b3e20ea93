"""Users of a common taste who choose between a model's answers, fitted with a prior and alone."""

from __future__ import annotations

import pytest
import torch

from benchmarks.users import shared_taste_wins
from benchmarks.users.choice_limits import OFFERS, JudgedAnswers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def answers():
    """Scores that follow the weights, of 30 prompts to choose on and 30 to win."""
    source = torch.Generator().manual_seed(0)
    dimensions, prompts = 3, 60
    rows = torch.randn(6, dimensions, generator=source).double()
    both = torch.stack((rows, -rows), 1).flatten(0, 1)
    noise = torch.randn(len(both), prompts, dimensions, generator=source).double()
    weights = {kind: spread * both for kind, spread in OFFERS.items()}
    scores = {kind: w.unsqueeze(1) + noise for kind, w in weights.items()}
    plain = torch.randn(prompts, dimensions, generator=source).double()
    return JudgedAnswers(weights, scores, plain, torch.eye(dimensions).double(), learn=30)


def test_weights_of_more_choices_come_nearer_and_win_more(answers):
    users = shared_taste_wins.shared_tastes(12, 3, 0.5)
    few, many = shared_taste_wins.result_rows("rewards", answers, users, 0.5, [3, 60])
    for way in ("alone", "prior"):
        assert many[way]["cosine"][0] > few[way]["cosine"][0]
        assert many[way]["wins"][0] > few[way]["wins"][0]
        assert few[way]["wins"][0] < few["wins_best"][0]
    assert few["gain"][0] == pytest.approx(
        few["prior"]["wins"][0] - few["alone"]["wins"][0], abs=2e-3
    )
    lines = shared_taste_wins.table([few, many])
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_a_share_of_one_is_one_taste(answers):
    users = shared_taste_wins.shared_tastes(4, 3, 1.0)
    assert torch.allclose(users, users[:1].expand_as(users))
    assert torch.allclose(users.norm(dim=-1), torch.ones(4).double())


def test_weights_of_zero_agree_with_nothing_and_win_what_no_guidance_wins(answers):
    _, test = answers.offers_and_test(shared_taste_wins.shared_tastes(2, 3, 0.5))
    nothing = torch.zeros(2, 3).double()
    assert test.cosine(nothing, test.best()).tolist() == [0, 0]
    assert test.wins(nothing).isfinite().all()
