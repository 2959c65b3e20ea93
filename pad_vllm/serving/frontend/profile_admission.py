"""Users of one front end: a request's `pad_user` becomes the weights of that user's profile.

In: PAD's settings and the dimensions of the adapter. Out: a UserRequest, or an error, which the client sees
as HTTP 400 or 403. A request looks up a dict; routes read and write in threads of their own. Needs the extra
`profiles`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from pad_vllm.argument_names import ADAPTER, PREFERENCE, USER, WEIGHTS, is_own_argument
from pad_vllm.choices.prior_file import read_prior
from pad_vllm.config import PADConfig
from pad_vllm.params import parse_guidance
from pad_vllm.profiles.database import Database
from pad_vllm.profiles.profile_cache import ProfileCache
from pad_vllm.profiles.profile_store import ProfileStore
from pad_vllm.profiles.profile_weights import WeightLearner
from pad_vllm.profiles.user_tokens import TOKEN_HEADER, UserTokens, WrongToken, read_secret
from pad_vllm.request_limits import RequestLimits
from pad_vllm.serving.frontend.conversation_learner import ConversationLearner
from pad_vllm.serving.frontend.route_errors import RefusedRequest
from pad_vllm.serving.frontend.text_readings import TextReadings, start_text_readings
from pad_vllm.serving.frontend.user_token_header import current_token
from pad_vllm.user_name import require_user_name
from pad_vllm.vllm_api.patches.user_request import UserRequest
from pad_vllm.vllm_api.vllm_names import init_logger
from pad_vllm.wording import refusal

logger = init_logger(__name__)

_THREADS = 2  # a fit holds Python's lock, which the event loop needs
_MAX_WAITING = 256

Result = TypeVar("Result")


def open_profiles(
    pad: PADConfig, dimensions: Sequence[str], base: str | None = None
) -> ProfileAdmission:
    """Open the database that the settings name, load users, and start the reader where there is to be one.

    Args:
        pad: the settings.
        dimensions: of the adapter that is served.
        base: folder or name of the served base; None: there is no server.

    Raises:
        ValueError: settings that cannot be served, or a database that does not answer.
    """
    if not dimensions:
        raise ValueError(
            "profiles hold weights of an adapter's dimensions, and this server has no adapter; accepted: "
            "one with dimensions. Start it with --adapter, or without --profiles."
        )
    if pad.learn_from_conversations and not pad.profile_reader:
        raise ValueError(
            "learn_from_conversations is given without profile_reader, which reads them; add "
            "--profile-reader cpu, or leave it out."
        )
    tokens = UserTokens(read_secret(pad.profile_tokens)) if pad.profile_tokens else None
    prior = read_prior(Path(pad.profile_prior), dimensions) if pad.profile_prior else None
    try:
        profiles = ProfileAdmission(
            Database(pad.profiles),
            WeightLearner(dimensions, prior),
            tokens,
            refuse_unknown=pad.unknown_user == "refuse",
        )
        profiles.cache.start()
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or type(error).__name__)
        raise ValueError(f"the database of profiles cannot be opened: {reason}") from None
    profiles.readings = start_text_readings(pad, base)
    if profiles.readings is not None and pad.learn_from_conversations:
        reader = profiles.readings.reader
        profiles.learner = ConversationLearner(reader, profiles.store, profiles.cache)
    return profiles


class ProfileAdmission:
    """Who may be named, and what their requests are guided by."""

    def __init__(
        self,
        database: Database,
        learner: WeightLearner,
        tokens: UserTokens | None = None,
        *,
        refuse_unknown: bool = False,
    ) -> None:
        """Nobody is loaded yet: `cache.start()` does it.

        Args:
            database: of the users.
            learner: of the dimensions of the adapter that is served.
            tokens: by which users name themselves; None: any client may name anyone.
            refuse_unknown: whether a request of an unknown user is refused.
        """
        self.store = ProfileStore(database, learner, self._on_change)
        self.cache = ProfileCache(self.store, _log_error)
        self.readings: TextReadings | None = None
        """By whom texts are read; None: nobody."""

        self.learner: ConversationLearner | None = None
        """What learns from conversations; None: they are not read."""

        self._tokens, self._refuse_unknown = tokens, refuse_unknown
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="pad-profiles")
        self._waiting = 0

    def require_allowed(self, user: str) -> None:
        """Raises PermissionError, which names nobody, where the request's token does not allow this user."""
        if self._tokens is None:
            return
        try:
            self._tokens.require(current_token(), user)
        except WrongToken:
            raise PermissionError(
                f"the header {TOKEN_HEADER} holds no valid token of the user that is named; accepted: one "
                "that was made for this user and has not ended (pad-vllm user-token). Send that."
            ) from None

    def with_weights(self, arguments: Mapping[str, Any]) -> UserRequest:
        """A request that names a user, with their weights among its arguments; what guides it is not set.

        Raises ValueError for a name that is none or an unknown user who is refused; PermissionError;
        ConnectionError where the database does not answer.
        """
        user = require_user_name(USER, arguments[USER])
        self.require_allowed(user)
        if ADAPTER in arguments:
            raise refusal(
                ADAPTER,
                arguments[ADAPTER],
                f"none beside {USER}: profiles have weights of the server's own adapter",
                f"leave one of the two out, or send {WEIGHTS}",
            )
        rest = {name: value for name, value in arguments.items() if name != USER}
        if WEIGHTS in rest:
            return UserRequest(user, None, is_known=True, arguments=rest, guidance=None)
        try:
            found = self.cache.weights(user)
        except SQLAlchemyError as error:
            _log_error(error)
            raise ConnectionError(
                "the database of profiles does not answer; ask again, or send pad_weights"
            ) from None
        if found is None and self._refuse_unknown:
            raise refusal(
                USER,
                user,
                "a user who has a profile",
                f"post a choice or weights for them first, or send {WEIGHTS}",
            )
        if found is not None and found.pad_weights:
            rest[WEIGHTS] = found.pad_weights
        version = None if found is None else found.version
        return UserRequest(user, version, is_known=found is not None, arguments=rest, guidance=None)

    @staticmethod
    def without_guidance(request: UserRequest, limits: RequestLimits) -> UserRequest | None:
        """A request of a user of whom nothing is known, without PAD's arguments; None where something else
        guides it. Raises ValueError for arguments that would be refused with weights too.
        """
        arguments = request.arguments
        if WEIGHTS in arguments or PREFERENCE in arguments:
            return None
        parse_guidance({**arguments, WEIGHTS: f"{limits.dimensions[0]}=0"}, limits)
        others = {name: value for name, value in arguments.items() if not is_own_argument(name)}
        return replace(request, arguments=others)

    async def in_thread(self, function: Callable[..., Result], *args: Any) -> Result:
        """What a function returns that waits for the disk or fits weights.

        Raises RefusedRequest where too many wait, or the database does not answer.
        """
        if self._waiting >= _MAX_WAITING:
            raise _busy("too many wait to read or write profiles")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, function, *args)
        except SQLAlchemyError as error:
            _log_error(error)
            raise _busy("the database of profiles does not answer") from None
        finally:
            self._waiting -= 1

    def _on_change(self, profile: Any) -> None:
        self.cache.add(profile)


def _busy(what: str) -> RefusedRequest:
    return RefusedRequest(
        HTTPStatus.SERVICE_UNAVAILABLE, f"{what}; ask again in a second", {"Retry-After": "1"}
    )


def _log_error(error: Exception) -> None:
    # The parameters of statements are hidden (database.py): they hold what people like.
    logger.error("PAD: the database of profiles: %s", error)
