"""A judge of meaning separates instructed answers from plain ones, and measures its own accuracy."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from pad_vllm.evaluation import instruction_classifier


def parts(shift, count=40):
    source = np.random.default_rng(0)
    plain = source.normal(size=(count, 8))
    return source.normal(size=(count, 8)) + shift * np.eye(8)[2], plain


def test_it_separates_instructed_answers_from_plain_ones():
    judge = instruction_classifier.fit_instruction_classifier(*parts(4.0), held_out=10)
    assert judge.accuracy == 1.0
    low, high = judge(np.stack((np.zeros(8), 4.0 * np.eye(8)[2])))
    assert low < 0 < high


def test_its_accuracy_is_near_one_half_where_they_do_not_differ():
    assert (
        0.2
        < instruction_classifier.fit_instruction_classifier(*parts(0.0, 200), held_out=100).accuracy
        < 0.8
    )


@pytest.mark.parametrize("held_out", [0, 40])
def test_too_few_prompts_are_refused_with_their_number(held_out):
    with pytest.raises(ValueError, match="has 40 prompts"):
        instruction_classifier.fit_instruction_classifier(*parts(1.0), held_out=held_out)
