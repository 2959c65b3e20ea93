"""A question to a person: one prompt, two answers under weights whose choice would teach most.

In: a conversation, the two weights. Out: two texts that differ. The answers come from the server's own chat
handler, both at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from pad_vllm.argument_names import WEIGHTS
from pad_vllm.profiles.profile import Weights, weights_text
from pad_vllm.serving.frontend.route_errors import RefusedRequest
from pad_vllm.vllm_api.server_chat import RefusedChat, chat_answer

_ATTEMPTS = 2


@dataclass(frozen=True)
class QuestionDraw:
    """How the answers of a question are drawn."""

    app: FastAPI
    """Of the server."""

    model: str
    """Name of the base."""

    messages: list[dict[str, str]]
    max_tokens: int
    temperature: float

    async def answers(self, weights: Sequence[Weights]) -> list[str]:
        """One answer for each of the weights, all different. Raises RefusedRequest where they stay equal, or
        the server refuses the conversation.
        """
        for _ in range(_ATTEMPTS):
            try:
                texts = await asyncio.gather(*map(self._answer, weights))
            except RefusedChat as error:
                raise RefusedRequest(error.status, str(error)) from None
            if len(set(texts)) == len(texts) and all(text.strip() for text in texts):
                return texts
        raise RefusedRequest(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "the answers are equal or empty, so a choice between them says nothing; ask about another "
            "prompt, or with more max_tokens",
        )

    async def _answer(self, weights: Weights) -> str:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": self.messages,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "vllm_xargs": {WEIGHTS: weights_text(weights)},
        }
        return await chat_answer(self.app, body)
