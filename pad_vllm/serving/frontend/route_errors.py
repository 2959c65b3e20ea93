"""Refusals of PAD's own routes, in the form of vLLM's: {"error": {"message", "type", "param", "code"}}.

A router of PAD's has `route_class=PADRoute`: it bounds the size of bodies, and answers a RefusedRequest, a
ValueError and a body that does not validate. Knows no route.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Message

from pad_vllm.wording import short_repr

MAX_BODY_BYTES = 1_000_000
"""A larger body is refused before it is read to its end."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class RefusedRequest(HTTPException):
    """A request that is answered by an error of this status; `detail` says why."""


class PADRoute(APIRoute):
    """A route whose errors have vLLM's form, wherever the app comes from."""

    def get_route_handler(self) -> Handler:
        """See APIRoute."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(_with_bounded_body(request))
            except RequestValidationError as error:
                return error_response(HTTPStatus.BAD_REQUEST, _first_wrong_field(error))
            except HTTPException as error:
                status = HTTPStatus(error.status_code)
                return error_response(status, str(error.detail), error.headers)
            except ValueError as error:
                return error_response(HTTPStatus.BAD_REQUEST, str(error))

        return answer


def error_response(status: HTTPStatus, message: str, headers: Any = None) -> JSONResponse:
    """An error in vLLM's form.

    Args:
        status: of the response.
        message: what was found, what is accepted and the way out.
        headers: of the response, such as Retry-After.
    """
    kind = status.phrase.replace(" ", "")
    kind = kind if kind.endswith("Error") else f"{kind}Error"
    error = {"message": message, "type": kind, "param": None, "code": status.value}
    return JSONResponse({"error": error}, status_code=status.value, headers=headers)


def _with_bounded_body(request: Request) -> Request:
    """The same request; reading more than MAX_BODY_BYTES of it raises RefusedRequest."""
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise RefusedRequest(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body has more than {MAX_BODY_BYTES:,} bytes; accepted: at most so many. Send less "
                "text.",
            )
        return message

    return Request(request.scope, receive)


def _first_wrong_field(error: RequestValidationError) -> str:
    """The first wrong value of a body in a sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
    if first["type"] == "value_error":  # a validator of our own, whose message says it all
        return f"{place}: {first['ctx']['error']}"
    return (
        f"{place} is {short_repr(first.get('input'))}: {first['msg']}. Correct it; "
        "README.md lists the fields of each route."
    )
