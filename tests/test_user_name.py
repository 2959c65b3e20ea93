"""Which names users may have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pad_vllm.user_name import require_user_name


@pytest.mark.parametrize(
    "name",
    ["a", "alice", "a b", "алиса", "爱丽丝", "x" * 128, "a@b.c", "😀", "'; DROP TABLE", "%2F"],
)
def test_a_name_of_any_script_is_accepted(name):
    assert require_user_name("user", name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "x" * 129, "x" * 10_000_000, " a", "a\n", "a\0b", "\ud800", "a/b", "a\\b", ".", ".."),
        *("\ufffd", "\u202eecila", None, 5, True, ["a"], {"a": 1}, b"a"),
    ],
)
def test_anything_else_is_refused_with_what_is_accepted(name):
    with pytest.raises(ValueError, match="accepted: a name of 1 to 128") as refused:
        require_user_name("user", name)
    assert len(str(refused.value)) < 600


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_what_is_accepted_can_be_sent_and_stored(text):
    try:
        require_user_name("user", text)
    except ValueError:
        return
    assert "\0" not in text
    assert text.encode("utf-8").decode("utf-8") == text
