"""What PAD adds to the app of vLLM's server. admission.py has it done where a front end starts."""

from __future__ import annotations

from fastapi import FastAPI

from pad_vllm.serving.frontend import dimension_routes, profile_routes
from pad_vllm.serving.frontend.user_token_header import UserTokenMiddleware


def add_pad_routes(app: FastAPI) -> None:
    """Add them; vllm_api/patches/server_routes.py calls it with every app."""
    app.include_router(dimension_routes.router)
    app.include_router(profile_routes.router, prefix="/v1/pad")
    app.add_middleware(UserTokenMiddleware)
