"""Sums or means of features, with length or without: chosen by choices that are left out."""

from __future__ import annotations

import pytest
import torch

from pad_vllm.choices.choice_form import DEFAULT_FORM, AnswerPairs, choose_form, has_length
from pad_vllm.choices.fit_weights import fit_weights

pytestmark = pytest.mark.usefixtures("one_thread")

DIMENSIONS = 5


def choices(by, count, seed, likes_short):
    """Choices by `mean` or `sum` of features whose tokens have a mean of their own, and by length."""
    source = torch.Generator().manual_seed(seed)
    w = torch.nn.functional.normalize(torch.randn(DIMENSIONS, generator=source).double(), dim=0)
    lengths = torch.randn(count, 2, generator=source).double().mul(0.6).add(4).exp().round()
    means = torch.randn(count, 2, DIMENSIONS, generator=source).double() * 0.3
    means = means + torch.randn(DIMENSIONS, generator=source).double() * 0.3
    noise = torch.randn(count, 2, DIMENSIONS, generator=source).double()
    sums = lengths.unsqueeze(-1) * means + lengths.sqrt().unsqueeze(-1) * noise
    liked = (sums / lengths.unsqueeze(-1) if by == "mean" else sums) @ w
    odds = 3 * (liked[:, 0] - liked[:, 1]) / (liked[:, 0] - liked[:, 1]).std()
    length = (lengths.log()[:, 0] - lengths.log()[:, 1]) * likes_short * 2
    second = torch.rand(count, generator=source) > (odds - length).sigmoid()
    order = torch.stack((second, ~second), 1).long()
    rows = torch.arange(count).unsqueeze(1)
    return AnswerPairs(sums[rows, order], lengths[rows, order]), w


def cosine(pairs, w, form):
    found = fit_weights(pairs.differences(form), nuisance=int(has_length(form))).w
    return torch.cosine_similarity(found, w, dim=0).item()


@pytest.mark.parametrize(("by", "other"), [("mean", "sum"), ("sum", "mean")])
def test_the_form_of_the_choices_is_found(by, other):
    made = [choices(by, 100, seed, likes_short=1.0) for seed in range(8)]
    forms = [choose_form([pairs]) for pairs, _ in made]
    assert sum(form.startswith(by) for form in forms) >= 6
    found, plain = (
        sum(cosine(pairs, w, form) for (pairs, w), form in zip(made, which, strict=True)) / 8
        for which in (forms, [other] * 8)
    )
    assert found > plain + 0.02


def test_length_is_fitted_and_no_dimension_gets_it():
    (pairs, w) = choices("mean", 200, 1, likes_short=2.0)
    found = fit_weights(pairs.differences("mean with length"), nuisance=1)
    assert found.w.shape == (DIMENSIONS,)
    assert found.interval.shape == (DIMENSIONS, 2)
    assert cosine(pairs, w, "mean with length") > max(0.9, cosine(pairs, w, "mean"))
    assert found.cross_validated > 0.75


def test_few_choices_get_the_default_form():
    pairs, _ = choices("sum", 8, 0, likes_short=0.0)
    assert choose_form([pairs]) == DEFAULT_FORM
