"""A preference in words stands in the last user turn, and nowhere else."""

from __future__ import annotations

import pytest

from pad_vllm.text.preference_text import with_instruction, with_preference

TALK = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]


def test_an_instruction_stands_behind_the_last_user_turn():
    assert with_instruction(TALK, "Be kind.") == [
        *TALK[:2],
        {"role": "user", "content": "three\n\nBe kind."},
    ]


def test_a_preference_stands_before_the_last_user_turn():
    changed = with_preference(TALK, "Be kind.")
    assert changed[:2] == TALK[:2]
    assert changed[2]["content"].endswith("[Principles] Be kind. [Instruction] three")


@pytest.mark.parametrize("put_in", [with_preference, with_instruction])
def test_a_conversation_without_a_user_turn_is_refused(put_in):
    with pytest.raises(ValueError, match="no user turn"):
        put_in(TALK[1:2], "Be kind.")
    assert TALK[2]["content"] == "three"
