"""What a model wrote is shown, and moves no cursor."""

from __future__ import annotations

import pytest

from pad_vllm.cli.explain import coloured_answer
from pad_vllm.cli.terminal_text import shown, terminal_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é\n\t日本 🙂", "plain é\n\t日本 🙂"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\rb\x9b", "a\\rb\\x9b"),
    ],
)
def test_control_characters_are_shown(text, expected):
    assert shown(text) == terminal_text(text).plain == expected


def test_an_explained_answer_has_none():
    token = {"token": "\x1b]0;title\x07", "reward": 1.0, "changed": True}
    assert coloured_answer([token]).plain == "\\x1b]0;title\\x07"
