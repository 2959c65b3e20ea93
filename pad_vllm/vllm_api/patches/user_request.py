"""What a front end knows of a request that named a user. serving/frontend/profile_admission.py makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class RequestGuidance(Protocol):
    """What guides a request. The front end holds it until the request ended, and its owner can tell by a weak
    reference when the last request that it guides has ended.
    """

    @property
    def worker_arguments(self) -> dict[str, Any]:
        """Request arguments that the worker reads in place of the client's."""


@dataclass(frozen=True)
class UserRequest:
    """A request with `pad_user`, decided once: later changes of the profile do not reach it."""

    user: str

    profile_version: int | None
    """Of the weights that it is guided by; None where it brought its own, or the user is not known."""

    is_known: bool
    """Whether the server knows the user; True where it was not asked."""

    arguments: Mapping[str, Any]
    """Its `extra_args`, with weights in place of the user."""

    guidance: RequestGuidance | None
    """What guides it; None: it is answered as the base would."""
