"""What of a chat request is read as a conversation: the turns that were answered before.

In: the messages of a request. Out: its earlier turns as messages, and a key by which a later request of the
same conversation is known. Knows neither vLLM nor users.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any

_SYSTEM = ("system", "developer")
_SPEAKERS = ("user", "assistant")

Turns = list[dict[str, str]]
"""Messages of user and assistant, the first of the user."""


def earlier_turns(messages: Sequence[Any]) -> Turns | None:
    """The turns of user and assistant up to the last answer. None where there is no earlier answer, or a
    message is no text of a user, an assistant or the system: a picture, a tool or its result.

    messages: of a chat request. What the system says is left out: it is the operator's, and no taste.
    """
    turns: Turns = []
    for message in messages:
        text = _text(message)
        if text is None:
            return None
        if message["role"] in _SPEAKERS:
            turns.append({"role": message["role"], "content": text})
    roles = [turn["role"] for turn in turns]
    if "user" not in roles or "assistant" not in roles or roles[-1] != "user":
        return None
    after = len(roles) - roles[::-1].index("assistant")
    return turns[roles.index("user") : after] or None


def conversation_key(messages: Sequence[Any], salt: str) -> str:
    """HMAC-SHA256 of what a conversation begins with: up to the first message of the user, in hexadecimal.

    Args:
        messages: of a request that has earlier turns.
        salt: of the database. Who has it can find out whether a conversation began with a text that they
            guess.
    """
    begin = []
    for message in messages:
        begin.append([message["role"], _text(message)])
        if message["role"] == "user":
            break
    text = json.dumps(begin).encode()
    return hmac.new(salt.encode(), text, hashlib.sha256).hexdigest()


def _text(message: Any) -> str | None:
    """A message's text; None where it is something else, or more."""
    if not isinstance(message, Mapping) or message.get("role") not in (*_SYSTEM, *_SPEAKERS):
        return None
    content = message.get("content")
    if message.get("tool_calls") or message.get("function_call"):
        return None
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "\n".join(part["text"] for part in content)
    return content if isinstance(content, str) and content.strip() else None


def _is_text_part(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    )
