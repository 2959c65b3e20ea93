"""One preference record: a prompt, two or more responses, a score per dimension for each.

What every source yields, what `pad-vllm sample` and `pad-vllm score` write (one JSON object a line) and
what training reads. A preference without scores is a score too: 1 for the preferred response, 0 for the
other. A dimension that a response has no score for is unknown, never zero. Knows nothing of tokenizers.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat

from pad_vllm.text.conversation import Conversation, require_known_roles


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Response(_StrictModel):
    """A response's text, its score per dimension, and its token ids if an engine sampled it."""

    text: Annotated[str, Field(min_length=1)]
    scores: dict[str, FiniteFloat] = {}
    token_ids: list[int] | None = None
    guided_by: dict[str, str | float] = {}
    """The request's arguments, such as `pad_weights`; empty if the base sampled it without guidance."""


class Drawing(_StrictModel):
    """Which model drew a record's answers, and how."""

    base: str
    """As it was named."""

    fingerprint: str | None = None
    """Of its weights (`weight_fingerprint.fingerprint`); None: there were none to read."""

    temperature: float
    top_k: int
    max_tokens: int
    seed: int


class PreferenceRecord(_StrictModel):
    """A conversation that ends with the user's message, and the responses to it."""

    prompt: Annotated[Conversation, AfterValidator(require_known_roles)]
    """In JSON a string (one user message) or a list of {"role", "content"}."""

    responses: Annotated[list[Response], Field(min_length=2)]
    source: str = ""
    """Label of the data source (`DataSpec.label`)."""

    scorers: dict[str, str] = {}
    """Dimension -> the scorer that made the scores (evaluation/scorer_specs.py). Training asks those of
    them that run locally about prefixes of the responses, too."""

    drawn_by: Drawing | None = None
    """What `pad-vllm sample` knows of its answers; None: others' answers, and files of earlier releases."""


def unit_hash(key: str) -> float:
    """The string hashed to a number in [0, 1), the same in every run and on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
