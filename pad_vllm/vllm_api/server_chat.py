"""Answers of a server's own model, through its own chat handler.

In: an app of vLLM's server and the body of a chat request. Out: the answer's text. So a question of PAD's own
routes is rendered, admitted and scheduled as any client's.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI


class RefusedChat(Exception):
    """The server refuses the request; the message is the server's."""

    def __init__(self, message: str, status: HTTPStatus) -> None:
        """Of an error response."""
        super().__init__(message)
        self.status = status


async def chat_answer(app: FastAPI, body: dict[str, Any]) -> str:
    """The text of one answer.

    Args:
        app: of vLLM's server.
        body: as a client would send it to /v1/chat/completions.

    Raises:
        RefusedChat: the server refuses it, or answers no chats.
        VLLMError: PAD refuses it.
    """
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    handler = getattr(app.state, "openai_serving_chat", None)
    if handler is None:
        raise RefusedChat("this server answers no chats", HTTPStatus.NOT_IMPLEMENTED)
    answer = await handler.create_chat_completion(ChatCompletionRequest(**body), None)
    error = getattr(answer, "error", None)
    if error is not None:
        raise RefusedChat(error.message, HTTPStatus(error.code))
    return answer.choices[0].message.content or ""
