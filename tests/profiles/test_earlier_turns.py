"""Which turns of a chat request are read, and by which key a conversation is known again."""

from __future__ import annotations

import pytest

from pad_vllm.profiles.earlier_turns import conversation_key, earlier_turns

SYSTEM = {"role": "system", "content": "Be nice."}
USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Ho"}
NEXT = {"role": "user", "content": "And?"}
PICTURE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
PARTS = {"role": "user", "content": [{"type": "text", "text": t} for t in ("Hi", "there")]}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}


@pytest.mark.parametrize(
    ("messages", "turns"),
    [
        ([USER, ANSWER, NEXT], [USER, ANSWER]),
        ([SYSTEM, USER, ANSWER, NEXT], [USER, ANSWER]),
        ([USER, ANSWER, NEXT, NEXT], [USER, ANSWER]),
        ([ANSWER, USER, ANSWER, NEXT], [USER, ANSWER]),
        ([USER, ANSWER, NEXT, ANSWER, USER], [USER, ANSWER, NEXT, ANSWER]),
        ([{**USER, "name": "Al"}, ANSWER, NEXT], [USER, ANSWER]),
        ([PARTS, ANSWER, NEXT], [{"role": "user", "content": "Hi\nthere"}, ANSWER]),
    ],
)
def test_the_turns_up_to_the_last_answer_are_read(messages, turns):
    assert earlier_turns(messages) == turns


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [USER],
        [SYSTEM, USER],
        [ANSWER, USER],
        [USER, ANSWER],
        [USER, NEXT],
        [PICTURE, ANSWER, NEXT],
        [USER, CALL, {"role": "tool", "content": "1"}, ANSWER, NEXT],
        [USER, ANSWER, {"role": "tool", "content": "1"}],
        [USER, {**ANSWER, "tool_calls": [{"id": "1"}]}, NEXT],
        [USER, {**ANSWER, "content": " "}, NEXT],
        [USER, {**ANSWER, "content": iter([])}, NEXT],
        ["Hi", ANSWER, NEXT],
    ],
)
def test_what_has_no_earlier_answer_or_is_no_text_is_not_read(messages):
    assert earlier_turns(messages) is None


def test_a_key_is_of_how_a_conversation_begins_and_of_the_salt():
    key = conversation_key([SYSTEM, USER, ANSWER, NEXT], "salt")
    assert key == conversation_key(
        [SYSTEM, USER, {**ANSWER, "content": "He"}, NEXT, ANSWER], "salt"
    )
    others = ([USER, ANSWER], [SYSTEM, NEXT, ANSWER], [{**SYSTEM, "content": "Hi"}, USER])
    assert len({key, *(conversation_key(one, "salt") for one in others)}) == 4
    assert key != conversation_key([SYSTEM, USER, ANSWER, NEXT], "other")
    assert len(key) == 64
