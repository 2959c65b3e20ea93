"""The token of the request that is being answered: ASGI middleware puts its header into a context variable.

Admission sees a request's parameters, and neither its headers nor the request. A request that came another
way than through this middleware has no token.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from pad_vllm.profiles.user_tokens import TOKEN_HEADER

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_token: ContextVar[str | None] = ContextVar("pad_user_token", default=None)


def current_token() -> str | None:
    """The token that came with the request; None without one."""
    return _token.get()


class UserTokenMiddleware:
    """Notes the header for as long as a request is answered."""

    def __init__(self, app: ASGIApp) -> None:
        """See Starlette's add_middleware."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        before = _token.set(Headers(scope=scope).get(TOKEN_HEADER))
        try:
            await self._app(scope, receive, send)
        finally:
            _token.reset(before)
