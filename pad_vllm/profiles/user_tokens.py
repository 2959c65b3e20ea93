"""Tokens by which a user may name themselves, and nobody else: JSON web tokens, signed by HMAC-SHA256.

In: a secret that the operator keeps. Out: tokens with an end, and the user that a token is of. The operator's
own tokens name anyone. Needs the extra `profiles`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pad_vllm.user_name import require_user_name
from pad_vllm.wording import short_repr

TOKEN_HEADER = "X-PAD-User-Token"  # noqa: S105, a header's name
MIN_SECRET_CHARS = 32
_AUDIENCE, _ALGORITHM = "pad-vllm", "HS256"
_ENVIRONMENT = "env:"


class WrongToken(Exception):
    """A token that is none, has ended, or is of another user. Says nothing of either."""


def read_secret(setting: str) -> str:
    """The secret that a setting names: `env:NAME`, or a file. Raises ValueError, which never shows it."""
    if setting.startswith(_ENVIRONMENT):
        secret = os.environ.get(setting.removeprefix(_ENVIRONMENT), "")
    else:
        try:
            secret = Path(setting).expanduser().read_text("utf-8")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"profile_tokens is {short_repr(setting)}, which cannot be read "
                f"({type(error).__name__}); accepted: env:NAME of an environment variable, or a file, that "
                "holds the secret"
            ) from None
    if len(secret.strip()) < MIN_SECRET_CHARS:
        raise ValueError(
            f"profile_tokens is {short_repr(setting)}, which holds fewer than {MIN_SECRET_CHARS} characters; "
            "accepted: a random secret of at least so many, such as that of `openssl rand -hex 32`"
        )
    return secret.strip()


class UserTokens:
    """Makes and checks the tokens of one secret."""

    def __init__(self, secret: str) -> None:
        """Needs PyJWT. secret: what `read_secret` returns."""
        try:
            import jwt
        except ImportError as error:
            raise ValueError(
                "profile_tokens needs PyJWT, which is not installed; pip install 'pad-vllm[profiles]'"
            ) from error
        self._jwt, self._secret = jwt, secret

    def make(self, user: str | None, valid_s: float) -> str:
        """A token.

        Args:
            user: whom it names; None: the operator, who may name anyone.
            valid_s: seconds until it ends.
        """
        now = int(time.time())
        claims: dict[str, Any] = {"aud": _AUDIENCE, "iat": now, "exp": now + int(valid_s)}
        if user is None:
            claims["admin"] = True
        else:
            claims["sub"] = require_user_name("the token's user", user)
        return self._jwt.encode(claims, self._secret, _ALGORITHM)

    def require(self, token: str | None, user: str) -> None:
        """Raises WrongToken unless a token names this user or is the operator's."""
        try:
            claims = self._jwt.decode(
                token or "",
                self._secret,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                options={"require": ["exp", "aud"]},
            )
        except (self._jwt.InvalidTokenError, ValueError):
            raise WrongToken from None
        if claims.get("admin") is not True and claims.get("sub") != user:
            raise WrongToken
