"""The page at /pad/: its files, to a browser that may load nothing from anywhere else.

In: a path below /pad/. Out: a file of static/, or a 404. The page needs no API key; what it asks for under
/v1 does. Knows nothing of PAD: the page reads all it shows from the server's HTTP API.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

PAGE_PATH = "/pad/"
"""Where the page is."""

STATIC_FOLDER = Path(__file__).parent / "static"

HEADERS = {
    # Scripts and styles are files of ours alone: what a model wrote cannot run, whatever becomes of it.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a browser asks again: the next release has the same names
}


def page_router() -> APIRouter:
    """The routes of the page."""
    router = APIRouter(include_in_schema=False)
    files = StaticFiles(directory=STATIC_FOLDER, html=True)

    @router.get(PAGE_PATH.rstrip("/"))
    async def without_slash() -> Response:
        # Relative: the server may be behind a path of a proxy's.
        return RedirectResponse(PAGE_PATH.strip("/") + "/")

    @router.get(PAGE_PATH + "{path:path}")
    async def page_file(path: str, request: Request) -> Response:
        response = await files.get_response(path or ".", request.scope)
        response.headers.update(HEADERS)
        return response

    return router
