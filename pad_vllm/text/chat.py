"""A conversation as the model reads it: the chat template, then the tokenizer, in the one way used here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def chat_ids(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """Token ids of a conversation up to where the assistant begins.

    Raises jinja2.TemplateError for a conversation that the template does not take.
    """
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
