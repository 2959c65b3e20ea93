"""The routes that vLLM leaves open without its key are those that docs/operations.md lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
UNAUTHORIZED = 401


def served_routes(routes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """(method, path) of an app's routes, of included routers too."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from served_routes(route.original_router.routes)
        elif getattr(route, "methods", None):
            yield from ((method, route.path) for method in route.methods)
        else:
            yield "GET", route.path


@pytest.fixture(scope="module")
def app():
    parser = make_arg_parser(FlexibleArgumentParser())
    return build_app(parser.parse_args(["--model", "base", "--api-key", "k"]), ("generate",))


def test_the_open_routes_are_the_listed_ones(app):
    client = TestClient(app, raise_server_exceptions=False)
    opened = {
        path
        for method, path in served_routes(app.routes)
        if client.request(method, path).status_code != UNAUTHORIZED
    }
    table = (
        OPERATIONS.read_text("utf-8").partition("| open without the key")[2].partition("\n\n")[0]
    )
    listed = {
        path for row in table.splitlines() for path in re.findall(r"`(/\S+)`", row.split("|")[1])
    }
    assert listed - {"/pad/"} == opened
