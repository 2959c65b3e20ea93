"""The fragments of refusals: they stay short and never fail themselves."""

import pytest

from pad_vllm.wording import did_you_mean, listed, short_repr


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("x" * 10_000, id="text"),
        pytest.param([["y" * 500] * 50] * 50, id="lists"),
        pytest.param(10**10_000, id="integer"),
        pytest.param({1: 10**9_999}, id="nested integer"),
    ],
)
def test_a_shown_value_stays_short_whatever_the_client_sent(value):
    assert len(short_repr(value)) < 300


def test_short_values_are_shown_as_python_writes_them():
    assert [short_repr(value) for value in ("a", 7, None, 0.5)] == ["'a'", "7", "None", "0.5"]


def test_a_near_name_is_suggested_whatever_its_case():
    assert did_you_mean("HELPFUL", ("helpful", "humor")) == " Did you mean 'helpful'?"
    assert did_you_mean("humour", ("helpful", "humor")) == " Did you mean 'humor'?"
    assert did_you_mean("expert", ("helpful", "humor")) == ""


def test_nothing_is_listed_as_none():
    assert (listed(["a", "b"]), listed([])) == ("a, b", "none")
