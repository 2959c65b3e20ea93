"""What PAD's routes read of the front end that answers them. In: a request. Out: its admission."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Protocol

from fastapi import Request

from pad_vllm.serving.frontend.adapter_registry import AdapterRegistry
from pad_vllm.serving.frontend.route_errors import RefusedRequest
from pad_vllm.vllm_api.patches.server_routes import front_end_admission


class ServedFrontEnd(Protocol):
    """What admission.Admission is to routes, which it makes itself."""

    @property
    def adapters(self) -> AdapterRegistry:
        """Those that requests may name."""

    @property
    def base_name(self) -> str:
        """The first name by which clients ask for the base."""

    @property
    def takes_instructions(self) -> bool:
        """Whether requests may have a sentence that the base's own reward stream reads."""

    @property
    def jobs(self) -> Any:
        """Those that make dimensions from sentences; None for a server without."""

    @property
    def profiles(self) -> Any:
        """Users' profiles; None for a server without."""


def served_front_end(request: Request) -> ServedFrontEnd:
    """The front end that answers a request. Raises RefusedRequest before it has begun."""
    admission: ServedFrontEnd | None = front_end_admission(request.app)
    if admission is None:
        raise RefusedRequest(
            HTTPStatus.SERVICE_UNAVAILABLE, "this server has not begun to serve PAD; ask again"
        )
    return admission
