"""What stated weights, conversations and choices together make of a profile."""

from __future__ import annotations

import pytest
import torch

from pad_vllm.choices.logistic_posterior import GaussianPrior
from pad_vllm.profiles.profile import NamedChoice, ProfileEvidence
from pad_vllm.profiles.profile_weights import WeightLearner

pytestmark = pytest.mark.usefixtures("one_thread")

LEARNER = WeightLearner(("kind", "brief"))
WEAK = {"kind": 0.06, "brief": -0.02}
BRIEF = NamedChoice({"brief": 1.0}, 1.0)
TIE = NamedChoice({"brief": 1.0}, 0.5)


def learn(*conversations, stated=None, choices=()):
    evidence = ProfileEvidence(stated, tuple(choices), tuple(conversations))
    return LEARNER.learn(evidence).weights


def test_conversations_are_averaged_as_if_one_more_had_taught_nothing():
    assert learn({"kind": 0.6}) == {"kind": 0.3, "brief": 0.0}
    assert learn({"kind": 0.6}, {"kind": 0.3, "brief": 0.6}) == {"kind": 0.3, "brief": 0.2}
    assert learn(*[{"kind": 0.6}] * 50)["kind"] == pytest.approx(0.588)


def test_weak_evidence_guides_weakly():
    assert learn(WEAK) == {"kind": 0.03, "brief": -0.01}
    assert learn({"kind": 0.0}) == {"kind": 0.0, "brief": 0.0}


def test_no_conversation_teaches_a_weight_above_one():
    assert learn({"kind": 8.0, "brief": -4.0}) == {"kind": 0.5, "brief": -0.25}


def test_what_was_stated_wins():
    for stated in ({"brief": 0.5}, {"kind": 0.0}, {}):
        assert learn(WEAK, stated=stated) == learn(stated=stated)
        assert learn(WEAK, stated=stated, choices=[BRIEF]) == learn(stated=stated, choices=[BRIEF])


def test_choices_begin_at_what_conversations_teach_and_correct_it():
    one = learn({"kind": 0.9}, choices=[BRIEF])
    assert one["kind"] > 0 < one["brief"]
    against = learn({"kind": 0.9}, choices=[NamedChoice({"kind": 1.0}, 0.0)] * 12)
    assert against["kind"] < 0
    alone, with_weak = learn(choices=[BRIEF] * 3), learn(WEAK, choices=[BRIEF] * 3)
    assert with_weak == pytest.approx(alone, abs=0.1)


def test_choices_that_say_nothing_leave_weak_evidence_weak():
    assert learn(WEAK, choices=[TIE] * 3)["kind"] == pytest.approx(0.03, rel=0.1)


def test_the_weights_grow_with_the_evidence_without_a_step():
    sizes = [max(map(abs, learn({"kind": x}, choices=[BRIEF]).values())) for x in (0, 0.01, 0.1)]
    assert sizes[0] == 1
    assert sizes[1] == pytest.approx(1, abs=0.05)


def test_dimensions_of_another_adapter_are_left_out():
    assert learn({"kind": 0.6, "formal": 9.0}) == {"kind": 0.3, "brief": 0.0}


def test_with_what_people_share_conversations_move_it_by_what_they_say():
    people = GaussianPrior(torch.tensor([0.0, 1.0]).double(), torch.eye(2).double())
    learner = WeightLearner(("kind", "brief"), people)
    choice = NamedChoice({"kind": 1.0}, 1.0)
    alone = learner.learn(ProfileEvidence(None, (choice,))).weights
    weak = learner.learn(ProfileEvidence(None, (choice,), ({"kind": 0.02},))).weights
    assert weak == pytest.approx(alone, abs=0.05)
