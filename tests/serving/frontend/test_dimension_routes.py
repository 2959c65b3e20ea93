"""GET /v1/pad/dimensions over an app with a front end that only looks like vLLM's; and what bodies may be."""

from __future__ import annotations

from http import HTTPStatus

import pytest

pytest.importorskip("vllm")

from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from front_end_app import front_end_app
from pydantic import BaseModel, ConfigDict

from pad_vllm.instruction import LearnedInstruction
from pad_vllm.request_limits import RequestLimits
from pad_vllm.serving.frontend.route_errors import MAX_BODY_BYTES, PADRoute, RefusedRequest

OTHER = RequestLimits(dimensions=("calm",), beta=1.0, top_k=5, max_beta=10.0, max_top_k=100)
LIMITS = RequestLimits(
    dimensions=("kind", "brief"),
    beta=0.5,
    top_k=20,
    max_beta=10.0,
    max_top_k=100,
    min_p=0.15,
    loop_price=0.25,
    sentences={"kind": "Be kind."},
    prefixes={"kind": LearnedInstruction("0" * 64, 32)},
    other_adapters={"work": OTHER},
)


@pytest.fixture
def app():
    """An app with PAD's routes, and a front end that serves LIMITS."""
    return front_end_app(LIMITS)


def test_a_client_learns_what_it_may_ask_for(app):
    assert TestClient(app).get("/v1/pad/dimensions").json() == {
        "model": "base",
        "adapter": "adapter",
        "engine": "shared",
        "defaults": {"beta": 0.5, "top_k": 20, "no_repeat": 0, "min_p": 0.15, "loop_price": 0.25},
        "max_beta": 10.0,
        "max_top_k": 100,
        "dimensions": [
            {"name": "kind", "instruction": "Be kind."},
            {"name": "brief", "instruction": None},
        ],
        "prefixes": ["kind"],
        "instructions": False,
        "adapters": [{"name": "work", "dimensions": [{"name": "calm", "instruction": None}]}],
        "profiles": False,
        "sentences": False,
        "learns_from_conversations": False,
        "jobs": False,
    }


def test_before_the_front_end_has_begun_it_says_so(app):
    del app.state.engine_client

    refused = TestClient(app).get("/v1/pad/dimensions")

    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == 503


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str


@pytest.fixture
def echo():
    """A client of a route that takes a Body."""
    router, app = APIRouter(route_class=PADRoute), FastAPI()

    @router.post("/echo")
    async def answer(body: Body) -> str:
        if body.text == "busy":
            raise RefusedRequest(HTTPStatus.SERVICE_UNAVAILABLE, "busy", {"Retry-After": "3"})
        if body.text == "wrong":
            raise ValueError("text is 'wrong'; accepted: another. Way out: change it.")
        return body.text

    app.include_router(router)
    return TestClient(app)


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b'{"text": "hello"}', 200, "hello"),
        (b'{"text": "wrong"}', 400, "accepted: another"),
        (b'{"text": 5}', 400, "text is 5"),
        (b'{"text": "a", "more": 1}', 400, "more is 1"),
        (b"{}", 400, "text is"),
        (b"", 400, "the body is"),
        (b"\xff\xfe", 400, ""),
        (b"[" * 200_000, 400, ""),
        (b'{"text": "' + b"a" * MAX_BODY_BYTES + b'"}', 413, "accepted: at most"),
    ],
    ids=["good", "wrong", "type", "extra", "missing", "empty", "bytes", "deep", "big"],
)
def test_a_wrong_body_is_refused_with_the_reason(echo, content, status, said):
    answer = echo.post("/echo", content=content, headers={"Content-Type": "application/json"})

    assert answer.status_code == status
    assert said in answer.text
    assert status == 200 or answer.json()["error"]["code"] == status


def test_a_busy_server_says_when_to_ask_again(echo):
    answer = echo.post("/echo", json={"text": "busy"})

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "3")
