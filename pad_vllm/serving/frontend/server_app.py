"""What PAD adds to the app of vLLM's server. admission.py has it done where a front end starts."""

from __future__ import annotations

from fastapi import FastAPI

from pad_vllm.serving.frontend import dimension_routes


def add_pad_routes(app: FastAPI) -> None:
    """Add them; vllm_api/patches/server_routes.py calls it with every app."""
    app.include_router(dimension_routes.router)
