"""What PAD adds to the app of vLLM's server. admission.py has it done where a front end starts."""

from __future__ import annotations

from fastapi import FastAPI

from pad_vllm.serving.frontend import dimension_routes, job_routes, profile_routes
from pad_vllm.serving.frontend.user_token_header import UserTokenMiddleware
from pad_vllm.serving.page.page_routes import page_router


def add_pad_routes(app: FastAPI) -> None:
    """Add them; vllm_api/patches/server_routes.py calls it with every app."""
    app.include_router(dimension_routes.router)
    app.include_router(job_routes.router)
    app.include_router(profile_routes.router, prefix="/v1/pad")
    app.add_middleware(UserTokenMiddleware)


def add_page(app: FastAPI) -> None:
    """Add the page, which an operator switches on."""
    app.include_router(page_router())
