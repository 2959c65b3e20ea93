"""A user's token names that user, until it ends, and nothing else is one."""

from __future__ import annotations

import base64
import json

import pytest

pytest.importorskip("jwt")

import jwt

from pad_vllm.profiles.user_tokens import UserTokens, WrongToken, read_secret

SECRET = "s" * 40
TOKENS = UserTokens(SECRET)


def test_a_token_names_its_user_alone():
    token = TOKENS.make("алиса", 60)
    TOKENS.require(token, "алиса")
    with pytest.raises(WrongToken):
        TOKENS.require(token, "bob")


def test_the_operators_token_names_anyone():
    TOKENS.require(TOKENS.make(None, 60), "bob")


def unsigned(claims):
    parts = ({"alg": "none", "typ": "JWT"}, claims)
    return (
        b".".join(
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts
        ).decode()
        + "."
    )


CLAIMS = {"sub": "bob", "aud": "pad-vllm", "exp": 2**40}


@pytest.mark.parametrize(
    "token",
    [
        None,
        "",
        "bob",
        "a.b.c",
        "\ud800",
        "x" * 100_000,
        TOKENS.make("bob", -1),
        TOKENS.make("bob", 60)[:-2],
        UserTokens("t" * 40).make("bob", 60),
        unsigned(CLAIMS),
        jwt.encode({**CLAIMS, "aud": "another"}, SECRET),
        jwt.encode({key: CLAIMS[key] for key in ("sub", "aud")}, SECRET),
        jwt.encode({**CLAIMS, "sub": "eve", "admin": "true"}, SECRET),
    ],
)
def test_nothing_else_is_a_token(token):
    with pytest.raises(WrongToken) as refused:
        TOKENS.require(token, "bob")
    assert str(refused.value) == ""


def test_a_secret_comes_from_the_environment_or_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PAD_SECRET", SECRET)
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    assert read_secret("env:PAD_SECRET") == read_secret(str(file)) == SECRET


@pytest.mark.parametrize("setting", ["env:PAD_MISSING", "/nowhere", "{short}", "{bytes}"])
def test_a_secret_that_is_missing_or_short_is_refused_and_not_shown(tmp_path, setting):
    (tmp_path / "short").write_text("hunter2")
    (tmp_path / "bytes").write_bytes(b"\xff" * 50)
    setting = setting.format(short=tmp_path / "short", bytes=tmp_path / "bytes")
    with pytest.raises(ValueError, match="accepted") as refused:
        read_secret(setting)
    assert "hunter2" not in str(refused.value)
