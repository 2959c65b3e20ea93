"""The routes of users as an app of their own, without an engine: beside servers that share its database.

In: an adapter, an address of a database, as a server has them. Out: a FastAPI app. What is posted here guides
the next requests of every server. It draws no questions, which need an engine.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI

from pad_vllm.config import PADConfig
from pad_vllm.serving.frontend import profile_routes
from pad_vllm.serving.frontend.profile_admission import open_profiles
from pad_vllm.serving.frontend.user_token_header import UserTokenMiddleware
from pad_vllm.serving.start.served_adapters import served_limits


def profile_app(settings: dict[str, Any], prefix: str = "/v1/pad") -> FastAPI:
    """Routes of users under `prefix`. The caller guards them: no key is asked for.

    settings: PAD's, as in additional_config; `adapter` and `profiles` are needed. Raises ValueError.
    """
    pad = PADConfig.from_additional_config({"pad": settings})
    if not pad.profiles:
        raise ValueError(
            "profiles is not given; accepted: a file, or postgresql://USER@HOST/DATABASE"
        )
    limits = served_limits(pad)
    app = FastAPI()
    app.include_router(profile_routes.router, prefix=prefix)
    app.add_middleware(UserTokenMiddleware)
    front_end = SimpleNamespace(
        adapters=SimpleNamespace(limits=limits),
        base_name="",
        takes_instructions=False,
        jobs=None,
        profiles=open_profiles(pad, limits.dimensions),
    )
    app.state.engine_client = SimpleNamespace(
        input_processor=SimpleNamespace(pad_admission=front_end)
    )
    return app
