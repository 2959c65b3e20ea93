"""Everyday questions, for a person who is to choose between two answers and brought no prompt."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

_FILE = Path(__file__).with_name("questions.txt")


@cache
def question_prompts() -> tuple[str, ...]:
    """All of them."""
    return tuple(_FILE.read_text("utf-8").splitlines())


def random_prompt() -> str:
    """Any of them."""
    return random.choice(question_prompts())
