"""Synthetic users: how they are drawn, stated in words and in a prompt, and the angles between them."""

from __future__ import annotations

import math

import pytest
import torch

from pad_vllm.text.preference_text import with_preference
from pad_vllm.training.data.synthetic_preferences import (
    WORDINGS,
    angle_to_nearest,
    describe_weights,
    draw_for_known,
    draw_preferences,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_unknown_dimensions_weigh_nothing_and_the_known_ones_are_draws_own():
    known = torch.tensor([True, False, True, True, False])
    w = draw_for_known(known, 400, seeded())
    assert w.shape == (400, 5)
    assert not w[:, ~known].any()
    assert torch.equal(w[:, known], draw_preferences(400, 3, seeded()))


def test_with_all_dimensions_known_it_is_draw():
    assert torch.equal(
        draw_for_known(torch.ones(4).bool(), 50, seeded()), draw_preferences(50, 4, seeded())
    )


def test_one_known_dimension_leaves_only_its_sign():
    w = draw_for_known(torch.tensor([False, True]), 200, seeded())
    assert set(w[:, 1].tolist()) == {1.0, -1.0}


def test_a_prompt_without_known_dimensions_is_refused():
    with pytest.raises(ValueError, match="none of the 3 dimensions is known"):
        draw_for_known(torch.zeros(3).bool(), 5, seeded())


@pytest.mark.parametrize(
    ("w", "text"),
    [
        ({"helpful": 1.0}, "helpful"),
        ({"helpful": -2.0}, "not helpful"),
        ({"harmless": 1.0, "helpful": 1.0}, "harmless and helpful"),
        ({"harmless": 1, "helpful": 2, "humor": -1}, "harmless and very helpful but not humorous"),
        ({"harmless": 1, "helpful": 1, "humor": 1}, "harmless, helpful and humorous"),
        ({"positive": 1, "brief": 0.2}, "very positive and slightly brief"),
        ({"positive": 1, "brief": 0.05}, "positive"),
        ({"positive": 1, "brief": 0.0, "simple": -0.2}, "very positive but not too simple"),
        ({"positive": 0.5, "simple": -1}, "positive but not at all simple"),
        ({"well_read": 1e-3}, "well read"),
    ],
)
def test_weights_in_words(w, text):
    assert describe_weights(w) == text


@pytest.mark.parametrize("wording", range(len(WORDINGS)))
def test_a_paraphrase_is_another_text_that_names_the_same_dimensions(wording):
    w = {"harmless": 0.5, "helpful": 1.0, "expert": 0.2, "humor": -0.5, "simple": -1.0}
    text = describe_weights(w, wording=wording)
    assert text == describe_weights(w, wording=wording)
    assert all(name in text for name in ("harmless", "helpful", "expert", "humorous", "simple"))
    assert len({describe_weights(w, wording=other) for other in range(len(WORDINGS))}) == len(
        WORDINGS
    )


@pytest.mark.parametrize("wording", range(len(WORDINGS)))
def test_every_degree_and_sign_reads_differently(wording):
    sentences = {
        describe_weights({"helpful": 1.0, "humor": sign * part}, wording=wording)
        for sign in (1, -1)
        for part in (0.2, 0.5, 1.0)
    }
    assert len(sentences) == 6


@pytest.mark.parametrize("w", [{}, {"brief": 0.0}, {"brief": math.nan}, {"brief": math.inf}])
def test_weights_that_say_nothing_are_refused(w):
    with pytest.raises(ValueError, match="say nothing; accepted: finite numbers"):
        describe_weights(w)


@pytest.mark.parametrize("wording", [-1, len(WORDINGS)])
def test_an_unknown_wording_is_refused(wording):
    with pytest.raises(ValueError, match=f"wording is {wording}; accepted: 0 to"):
        describe_weights({"brief": 1.0}, wording=wording)


def test_the_preference_stands_before_the_last_user_turn_and_nothing_else_changes():
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "two"},
    ]
    before = [dict(message) for message in messages]
    out = with_preference(messages, "harmless and helpful")
    assert messages == before
    assert out[:3] == messages[:3]
    assert out[3]["content"] == (
        "[Guidelines] Your task is to generate response by considering the following principle. "
        "[Principles] harmless and helpful [Instruction] two"
    )


def test_a_conversation_without_a_user_is_refused():
    with pytest.raises(ValueError, match="no user turn"):
        with_preference([{"role": "system", "content": "S"}], "brief")


@pytest.mark.parametrize(
    ("w", "degrees"),
    [
        ([1.0, 0.0, 0.0], 0.0),
        ([5.0, 5.0, 0.0], 45.0),
        ([0.0, 0.0, 1.0], 90.0),
        ([-1.0, -1.0, 0.0], 135.0),
    ],
)
def test_the_distance_is_the_angle_to_the_nearest_trained_direction(w, degrees):
    trained = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.3, 0.0]])
    assert angle_to_nearest(torch.tensor(w), trained) == pytest.approx(degrees, abs=1e-6)


def test_the_opposite_of_the_only_trained_preference_is_180_degrees_away():
    w = torch.tensor([0.3, -0.2])
    assert angle_to_nearest(w, -2 * w[None]) == pytest.approx(180.0, abs=1e-6)


@pytest.mark.parametrize(
    ("w", "trained"),
    [([0.0, 0.0], [[1.0, 0.0]]), ([1.0, 0.0], []), ([1.0, 0.0], [[0.0, 0.0]])],
)
def test_no_direction_has_no_angle(w, trained):
    with pytest.raises(ValueError, match="no angle"):
        angle_to_nearest(torch.tensor(w), torch.tensor(trained).view(-1, 2))
