"""The prior of people as a file: what fit writes is read again, and what says nothing is refused."""

from __future__ import annotations

import json

import pytest
import torch

from pad_vllm.choices.logistic_posterior import GaussianPrior
from pad_vllm.choices.prior_file import prior_to_json, read_prior
from pad_vllm.choices.taste_prior import TastePrior

NAMES = ("a", "b", "c")
COVARIANCE = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 3.0]]).double()
PRIOR = GaussianPrior(torch.tensor([1.0, -1.0, 0.0]).double(), COVARIANCE)


@pytest.fixture
def write(tmp_path):
    def write_line(**changes):
        shared = prior_to_json(TastePrior(PRIOR, "covariance", {"covariance": -0.5}), NAMES)
        line = {"adapter": "x", "form": None, "prior": shared} | changes
        path = tmp_path / "people.jsonl"
        path.write_text(json.dumps(line) + '\n{"user": "u"}\n', "utf-8")
        return path

    return write_line


def test_what_many_users_share_is_read_in_the_adapters_order(write):
    found = read_prior(write(), ("c", "a"))
    assert found.mean.tolist() == [0.0, 1.0]
    assert found.covariance.tolist() == [[3.0, 0.0], [0.0, 2.0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "mean"}, "unguided answers .compared by mean."),
        ({"prior": None}, "nothing in common"),
        ({"prior": {"kind": "none", "left_out": {}}}, "nothing in common"),
        ({"prior": {"mean": {"a": 1.0}, "covariance": [[1.0]]}}, "it knows a and not b, c"),
        ({"prior": {"mean": {"a": 1, "b": 1, "c": 1}, "covariance": [[1.0]]}}, "3 rows of as many"),
        (
            {"prior": {"mean": {"a": 1, "b": 1, "c": 1}, "covariance": [[0.0] * 3] * 3}},
            "positive definite",
        ),
    ],
)
def test_a_file_that_says_nothing_of_these_weights_is_refused(write, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        read_prior(write(**changes), NAMES)
    assert "people.jsonl" in str(error.value)
    assert "pad-vllm fit BASE CHOICES" in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"form": null, "prior": {"mean": {"a": NaN}}}'])
def test_what_is_no_such_file_is_refused(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other.json.*accepted"):
        read_prior(path, NAMES)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_prior(tmp_path / "none", NAMES)
