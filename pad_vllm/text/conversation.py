"""A conversation: what every prompt is, from the file it is read from to the chat template.

In: a text, or messages as JSON has them. Out: `Conversation`, immutable and hashable; the same as messages
for a chat template, as JSON, and as text for a scorer. `prompt_key` is what splits and repeats are decided
by. Knows no tokenizer and no file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, RootModel, model_validator

ROLES = ("system", "user", "assistant")
"""Roles of the messages that data and prompts may have."""


class Message(BaseModel):
    """One message of a conversation, as chat templates take it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str
    content: str


class Conversation(RootModel[tuple[Message, ...]]):
    """One or more messages, in order.

    Validates a list of {"role", "content"}, or a string: one user message. Raises
    pydantic.ValidationError, a ValueError, for anything else.
    """

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _as_messages(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [{"role": "user", "content": value}]
        if not value or not isinstance(value, list | tuple | Conversation):
            raise ValueError('neither text nor a list of {"role": "...", "content": "..."}')
        return value

    @classmethod
    def from_json(cls, text: str) -> Conversation:
        """The inverse of `to_json`."""
        return cls.model_validate(json.loads(text))

    def __iter__(self) -> Iterator[Message]:  # type: ignore[override]
        return iter(self.root)

    def __getitem__(self, index: int) -> Message:
        return self.root[index]

    def messages(self) -> list[dict[str, str]]:
        """As chat templates and vLLM's `LLM.chat` take it, [{"role": ..., "content": ...}, ...]."""
        return [message.model_dump() for message in self.root]

    def to_json(self) -> str:
        """`messages` as one line of JSON, with characters that are not ASCII as they are.

        Seeds of random draws and names of files are hashes of this string: do not change it.
        """
        return json.dumps(self.messages(), ensure_ascii=False)

    def as_text(self) -> str:
        """As a scorer reads it: a single message without its role, several with theirs."""
        if len(self.root) == 1:
            return self.root[0].content
        return "\n\n".join(f"{message.role}: {message.content}" for message in self.root)


def prompt_key(conversation: Conversation) -> str:
    """The first user message in lower case, with white space collapsed; without one, the first message.

    Train, validation and held-out parts, and the fractions of data weights, are decided by this string: its
    value must never change, or prompts that an adapter was trained on would count as held out.
    """
    messages = conversation.root
    first = next((m.content for m in messages if m.role == "user"), messages[0].content)
    return " ".join(first.lower().split())


def require_known_roles(conversation: Conversation) -> Conversation:
    """The conversation itself. Raises ValueError for a role that is not one of ROLES."""
    for message in conversation:
        if message.role not in ROLES:
            raise ValueError(
                f"a message has the role {message.role!r}; accepted: {', '.join(ROLES)}"
            )
    return conversation
