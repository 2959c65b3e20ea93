"""Shares of the teacher's rewards, from products of rewards."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.instruction_depth import explained_share
from benchmarks.quality.learned_prefix_depth import _by_prompt, share_at_one


def products(own, teacher):
    return own @ teacher, own @ own, teacher @ teacher


@pytest.mark.parametrize(("scale", "at_one"), [(1.0, 1.0), (0.5, 0.75), (2.0, 0.0), (0.0, 0.0)])
def test_at_scale_one_a_scaled_teacher_is_explained_in_part(scale, at_one):
    teacher = np.array([1.0, -2.0, 0.5])
    assert share_at_one(np.array(products(scale * teacher, teacher))) == pytest.approx(at_one)


def test_at_the_best_scale_a_scaled_teacher_is_explained_whole():
    teacher = np.array([1.0, -2.0, 0.5])
    assert explained_share(np.array(products(0.3 * teacher, teacher))) == pytest.approx(1.0)


def test_both_answers_of_a_prompt_are_added_up():
    rows = [(1.0, 2.0, 3.0), (4.0, 5.0, 6.0), (10.0, 20.0, 30.0), (40.0, 50.0, 60.0)]
    found = np.array(_by_prompt(rows, 2))
    assert found.tolist() == [[11.0, 22.0, 33.0], [44.0, 55.0, 66.0]]
