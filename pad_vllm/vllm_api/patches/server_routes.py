"""PAD's own routes and middleware in vLLM's server.

In: a function that adds them to a FastAPI app. It is called with every app that vLLM's server makes in this
process, after vLLM's own routes and before its middleware: paths below /v1 are behind the server's API key.
Wraps the function by which vLLM adds the routes of models that generate. Knows no route.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import vllm

from pad_vllm.vllm_api.patches.wrap_method import wrap_method
from pad_vllm.vllm_api.vllm_versions import ACCEPTED_IN_WORDS, IncompatibleVLLM

if TYPE_CHECKING:
    from fastapi import FastAPI

_MODULE, _FUNCTION = "vllm.entrypoints.generate.api_router", "register_generate_api_routers"


def extend_server_app(extend: Callable[[FastAPI], None]) -> None:
    """Call `extend` with every app that a server of this process makes from now on.

    Calling twice with one function changes nothing. Raises IncompatibleVLLM where this vLLM adds its routes
    in another way.
    """
    module = import_module(_MODULE)
    original = getattr(module, _FUNCTION, None)
    if original is None or "app" not in inspect.signature(original).parameters:
        raise IncompatibleVLLM(
            f"vLLM {vllm.__version__} has no {_MODULE}.{_FUNCTION}(app), where pad_vllm adds its routes; "
            f"pad_vllm accepts vLLM {ACCEPTED_IN_WORDS}. Install one of these."
        )
    # vLLM imports the function where it makes an app, so the module's attribute is what it calls.
    wrap_method(module, _FUNCTION, _followed_by(extend))


@cache
def _followed_by(extend: Callable[[FastAPI], None]) -> Callable[..., None]:
    """One wrapper for each `extend`, so that it is applied once."""

    def register(original: Callable[[FastAPI], None], app: FastAPI) -> None:
        original(app)
        extend(app)

    return register


def front_end_admission(app: FastAPI) -> Any:
    """The check of requests of the front end that an app serves (front_end_checks.py); None before the
    server has begun.
    """
    engine = getattr(app.state, "engine_client", None)
    return getattr(getattr(engine, "input_processor", None), "pad_admission", None)
