"""Profiles: choices of both kinds, ties, strengths, thumbs, stated likings, and what cannot be fitted."""

from __future__ import annotations

import math

import pytest
import torch

from pad_vllm.choices.fit_weights import fit_weights
from pad_vllm.choices.logistic_posterior import GaussianPrior, weight_posterior
from pad_vllm.choices.observed_choice import TIE, ObservedChoice
from pad_vllm.choices.profile_fit import fit_profile

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("a", "b", "c")
PRIOR = GaussianPrior.of_unit_weights(3)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def choice(*x, **more):
    return ObservedChoice(vector(*x), **more)


def fit(*choices, prior=PRIOR):
    return fit_profile(choices, prior, NAMES)


def test_nobodys_choices_are_weights_of_zero():
    found = fit()
    assert (found.w.tolist(), found.scale, found.choices) == ([0.0] * 3, 0.0, 0)
    assert found.interval.tolist() == [[-1.0, 1.0]] * 3
    assert found.pad_weights(NAMES) == "a=0,b=0,c=0"


def test_one_choice_says_its_direction_and_the_largest_weight_is_one():
    found = fit(ObservedChoice.between_weights(vector(1, 0, 0), vector(0, -1, 0)))
    torch.testing.assert_close(found.w, vector(1, 1, 0))
    assert not any(found.excludes_zero)


def test_the_second_answer_preferred_is_the_first_preferred_of_the_pair_turned():
    one = fit(choice(1, -2, 0.5, outcome=0.0))
    other = fit(choice(-1, 2, -0.5))
    torch.testing.assert_close(one.posterior.mean, other.posterior.mean)


def test_a_tie_narrows_what_is_known_and_moves_nothing():
    found = fit(choice(1, 0, 0, outcome=TIE), choice(1, 0, 0, outcome=TIE))
    assert found.scale == 0.0
    assert found.posterior.covariance[0, 0, 0] < PRIOR.covariance[0, 0]
    torch.testing.assert_close(found.posterior.covariance[0, 1, 1], PRIOR.covariance[1, 1])


def test_ties_pull_a_weight_towards_zero():
    firm = fit(*[choice(1, 0, 0)] * 3)
    doubted = fit(*[choice(1, 0, 0)] * 3, *[choice(1, 0, 0, outcome=TIE)] * 3)
    assert 0 < doubted.scale < firm.scale


def test_a_choice_of_strength_three_is_the_same_choice_made_three_times():
    once = fit(choice(1, 0.5, 0, strength=3.0), choice(0, 1, 1, outcome=0.0))
    thrice = fit(*[choice(1, 0.5, 0)] * 3, choice(0, 1, 1, outcome=0.0))
    torch.testing.assert_close(once.posterior.mean, thrice.posterior.mean)
    torch.testing.assert_close(once.posterior.covariance, thrice.posterior.covariance)


def test_a_thumb_compares_with_the_unguided_answer():
    liked = fit(ObservedChoice.thumb(vector(0, 2, 0), liked=True))
    disliked = fit(ObservedChoice.thumb(vector(0, 2, 0), liked=False))
    torch.testing.assert_close(liked.w, vector(0, 1, 0))
    torch.testing.assert_close(disliked.w, vector(0, -1, 0))
    assert fit(ObservedChoice.thumb(vector(0, 0, 0), liked=True)).scale == 0.0


def test_stated_weights_stand_until_choices_say_otherwise():
    stated = PRIOR.around_stated(vector(0.5, -0.5, 0))
    torch.testing.assert_close(fit(prior=stated).w, vector(1, -1, 0))
    against = [choice(-2, 0, 0)] * 12
    assert fit(*against, prior=stated).w[0] < 0
    assert fit(*against, prior=stated).w[1] < 0


def test_stated_weights_of_zero_state_nothing():
    assert PRIOR.around_stated(vector(0, 0, 0)) is PRIOR


def test_given_texts_and_guided_answers_are_fitted_together_whatever_the_features_units():
    source = torch.Generator().manual_seed(0)
    v, unit = vector(2.0, -1.0, 0.0), vector(0.01, 1.0, 300.0)

    def draw(count, spread):
        x = torch.randn(count, 3, generator=source).double() * spread
        outcome = torch.rand(count, generator=source) < (x @ v).sigmoid()
        return x, outcome.double().tolist()

    guided, texts = draw(40, 1.0), draw(40, 1.0)
    lengths = torch.randn(40, generator=source).tolist()
    choices = [ObservedChoice(x, y) for x, y in zip(*guided, strict=True)]
    given = [
        ObservedChoice(x * unit, y, length=30 * n) for x, y, n in zip(*texts, lengths, strict=True)
    ]
    alone, both = (fit_profile(c, PRIOR, NAMES) for c in (choices, choices + given))
    assert torch.cosine_similarity(both.posterior.mean[0], v, dim=0) > 0.97
    assert (both.posterior.deviation < alone.posterior.deviation).all()


def test_a_length_is_dropped_and_no_dimension_gets_it():
    sums, lengths = torch.tensor([[2.0, 0, 0], [0.0, 5.0, 0]]), torch.tensor([10, 50])
    one = ObservedChoice.between_texts(sums, lengths)
    torch.testing.assert_close(one.x, vector(0.2, -0.1, 0))
    assert one.length == -40
    short = [choice(0.01 * (-1) ** n, 0, 0, length=-40.0 - n) for n in range(20)]
    assert fit(*short).w.shape == (3,)
    assert not fit(*short).excludes_zero[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"outcome": 1.5}, "outcome is 1.5; accepted: 0"),
        ({"outcome": math.nan}, "outcome is nan"),
        ({"strength": 0.0}, "strength is 0; accepted: above 0, at most 10"),
        ({"strength": math.inf}, "strength is inf"),
        ({"length": math.inf}, "NaN or infinite"),
    ],
)
def test_numbers_that_are_no_choice_are_refused(more, message):
    with pytest.raises(ValueError, match=message):
        choice(1, 0, 0, **more)


def test_choices_of_another_adapter_are_refused():
    with pytest.raises(ValueError, match="choice 2 has 2 dimensions; accepted: 3, of a, b, c"):
        fit(choice(1, 0, 0), choice(1, 0))


def test_outcomes_and_strengths_of_fit_weights_are_those_of_the_posterior():
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(1)).double()
    outcomes = (x @ vector(3, -1, 0) > 0).double()
    found = fit_weights(x, outcomes=outcomes)
    turned = fit_weights(torch.where(outcomes.bool().unsqueeze(-1), x, -x))
    torch.testing.assert_close(found.w, turned.w)
    assert (found.accuracy, found.cross_validated) == (turned.accuracy, turned.cross_validated)
    ties = fit_weights(
        torch.cat((x, x)),
        outcomes=torch.cat((outcomes, torch.full((30,), TIE))),
        choice_strengths=torch.cat((torch.ones(30), torch.full((30,), 0.5))),
    )
    assert ties.scale < found.scale
    assert ties.accuracy == found.accuracy


def test_the_gradient_of_ties_and_strengths_vanishes_at_the_posteriors_mode():
    x = torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(2)).double()
    y = torch.rand(1, 20, generator=torch.Generator().manual_seed(3)).double()
    s = 5 * torch.rand(1, 20, generator=torch.Generator().manual_seed(4)).double()
    v = weight_posterior(x, PRIOR, outcomes=y, choice_strengths=s).mean[0].requires_grad_()
    log_odds = x[0] @ v
    logs = y[0] * log_odds.sigmoid().log() + (1 - y[0]) * (-log_odds).sigmoid().log()
    (gradient,) = torch.autograd.grad((s[0] * logs).sum() - v @ v / 2 / PRIOR.covariance[0, 0], v)
    torch.testing.assert_close(gradient, torch.zeros(3).double(), atol=1e-7, rtol=0)


def test_what_was_only_gathered_moves_the_prior_by_its_firmness():
    people = GaussianPrior(vector(0.3, 0, 0), PRIOR.covariance)
    w = vector(0, -1, 0)
    firm, weak, none = (people.around_stated(w, firmness) for firmness in (1.0, 0.1, 0.0))
    torch.testing.assert_close(none.mean, people.mean)
    torch.testing.assert_close(none.covariance, people.covariance)
    torch.testing.assert_close(weak.mean, 0.1 * firm.mean + 0.9 * people.mean)
    assert (firm.covariance.diagonal() < weak.covariance.diagonal()).all()
