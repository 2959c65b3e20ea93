"""An app with PAD's routes, and a front end that only looks like vLLM's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI

from pad_vllm.request_limits import RequestLimits
from pad_vllm.serving.frontend.server_app import add_pad_routes


def front_end_app(limits: RequestLimits | None = None, **fields: Any) -> FastAPI:
    """Of a server without profiles and jobs, unless they are given.

    Args:
        limits: of the served adapter.
        fields: of the front end, in the place of these.
    """
    app = FastAPI()
    add_pad_routes(app)
    front_end = {
        "adapters": SimpleNamespace(limits=limits, default_name="adapter"),
        "base_name": "base",
        "takes_instructions": False,
        "profiles": None,
        "jobs": None,
        **fields,
    }
    processor = SimpleNamespace(pad_admission=SimpleNamespace(**front_end))
    app.state.engine_client = SimpleNamespace(input_processor=processor)
    return app
