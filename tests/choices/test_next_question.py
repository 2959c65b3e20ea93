"""The next question: along what is not known, and better than random ones."""

from __future__ import annotations

import pytest
import torch

from pad_vllm.choices.logistic_posterior import GaussianPrior, WeightPosterior
from pad_vllm.choices.next_question import LENGTH, propose_question
from pad_vllm.choices.observed_choice import ObservedChoice
from pad_vllm.choices.profile_fit import fit_profile

pytestmark = pytest.mark.usefixtures("one_thread")


def posterior(mean, variances):
    mean, variances = (torch.tensor(values, dtype=torch.float64) for values in (mean, variances))
    return WeightPosterior(mean.unsqueeze(0), variances.diag().unsqueeze(0))


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_question_is_along_the_widest_direction_across_the_mean():
    first, second = propose_question(posterior([3.0, 0.0, 0.0], [100.0, 4.0, 1.0]), source())
    torch.testing.assert_close(first.abs(), LENGTH * torch.tensor([0.0, 1.0, 0.0]).double())
    torch.testing.assert_close(second, -first)


def test_where_nothing_is_known_questions_differ_and_either_answer_comes_first():
    nothing = posterior([0.0] * 4, [2.0] * 4)
    asked = {tuple(propose_question(nothing, source(seed))[0].tolist()) for seed in range(60)}
    assert len(asked) == 8


def test_a_single_dimension_is_asked_of():
    first, second = propose_question(posterior([2.0], [1.0]), source())
    assert sorted([first.item(), second.item()]) == [-LENGTH, LENGTH]


def cosine_after(questions, *, proposed, seed, dimensions=6):
    rng = source(seed)
    names = tuple(str(d) for d in range(dimensions))
    prior = GaussianPrior.of_unit_weights(dimensions)
    v = torch.nn.functional.normalize(torch.randn(dimensions, generator=rng).double(), dim=0) * 6
    choices = []
    for _ in range(questions):
        if proposed:
            asked = propose_question(fit_profile(choices, prior, names).posterior, rng)
            first, second = (w / LENGTH for w in asked)
        else:
            drawn = torch.randn(2, dimensions, generator=rng).double()
            first, second = torch.nn.functional.normalize(drawn, dim=-1)
        preferred = torch.rand((), generator=rng) < ((first - second) @ v).sigmoid()
        choices.append(ObservedChoice.between_weights(first, second, outcome=float(preferred)))
    found = fit_profile(choices, prior, names)
    return torch.cosine_similarity(found.posterior.mean[0], v, dim=0).item()


def test_proposed_questions_teach_more_than_random_ones():
    def mean(*, proposed):
        return sum(cosine_after(10, proposed=proposed, seed=s) for s in range(30)) / 30

    assert mean(proposed=True) > mean(proposed=False) + 0.08
