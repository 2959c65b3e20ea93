"""One preference record: a prompt, two or more responses, a score per dimension for each.

What every source yields, what `pad-vllm sample` and `pad-vllm score` write (one JSON object a line) and
what training reads. A preference without scores is a score too: 1 for the preferred response, 0 for the
other. A dimension that a response has no score for is unknown, never zero. Knows nothing of tokenizers.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Message(_StrictModel):
    """One turn of a conversation, as chat templates take it."""

    role: Literal["system", "user", "assistant"]
    content: str


class Response(_StrictModel):
    """A response's text, its score per dimension, and its tokens where an engine drew it."""

    text: Annotated[str, Field(min_length=1)]
    scores: dict[str, FiniteFloat] = {}
    token_ids: list[int] | None = None
    guided_by: dict[str, str | float] = {}
    """The request's arguments, as `pad_weights`; none where the base itself drew it."""


def _conversation(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class PreferenceRecord(_StrictModel):
    """A conversation that ends with the user's turn, and responses to it.

    prompt may be given as a string: one user turn. scorers names, per dimension, the scorer
    (evaluation/scorer_specs.py) that made the scores; training asks a local one about beginnings too.
    """

    prompt: Annotated[list[Message], BeforeValidator(_conversation), Field(min_length=1)]
    responses: Annotated[list[Response], Field(min_length=2)]
    source: str = ""
    scorers: dict[str, str] = {}

    @property
    def key(self) -> str:
        """The first user turn, white space and case folded: what splits and deduplication go by."""
        first = next((m.content for m in self.prompt if m.role == "user"), self.prompt[0].content)
        return " ".join(first.lower().split())


def unit_hash(key: str) -> float:
    """The key hashed to a number in [0, 1), the same in every run: what splits go by."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
