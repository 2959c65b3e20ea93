"""A request that names a user is guided by the weights of their profile, and by nothing of anyone else's."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")
pytest.importorskip("sqlalchemy")
pytest.importorskip("jwt")

from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from vllm.entrypoints.serve.utils.api_utils import with_cancellation

from pad_vllm.argument_names import USER, WEIGHTS
from pad_vllm.config import PADConfig
from pad_vllm.guidance_outcome import OUTCOME_KEY, total_outcome
from pad_vllm.params import parse_guidance
from pad_vllm.profiles.database import Database
from pad_vllm.profiles.profile_weights import WeightLearner
from pad_vllm.profiles.user_tokens import UserTokens
from pad_vllm.request_limits import RequestLimits
from pad_vllm.serving.frontend import profile_admission, user_token_header
from pad_vllm.serving.frontend.admission import Admission
from pad_vllm.serving.frontend.profile_admission import ProfileAdmission, open_profiles
from pad_vllm.vllm_api.patches import front_end_checks, outcome_rpc
from pad_vllm.vllm_api.patches.outcome_rpc import with_outcome_key
from pad_vllm.vllm_api.vllm_names import GracefulHTTPError, SamplingParams

LIMITS = RequestLimits(
    dimensions=("kind", "brief"),
    beta=1.0,
    top_k=5,
    max_beta=10.0,
    max_top_k=100,
    worker_key="key",
    other_adapters={
        "work": RequestLimits(dimensions=("calm",), beta=1.0, top_k=5, max_beta=10.0, max_top_k=9)
    },
)
TOKENS = UserTokens("s" * 40)


@pytest.fixture
def make(tmp_path):
    def make_admission(tokens=None, **settings):
        database = Database(str(tmp_path / "users.db"))
        profiles = ProfileAdmission(database, WeightLearner(LIMITS.dimensions), tokens, **settings)
        profiles.cache.refresh()
        profiles.store.put_stated("alice", {"kind": 0.5})
        profiles.store.add_question("shy", {"kind": 1.0}, {})
        config = SimpleNamespace(served_model_name="base")
        return Admission(SimpleNamespace(limits=LIMITS), config, profiles=profiles)

    return make_admission


def admit(admission, **arguments):
    return admission(SamplingParams(extra_args=arguments))


def worker_arguments(admission, **arguments):
    """What a worker would see."""
    params = SamplingParams(extra_args=arguments)
    admitted, _ = with_outcome_key(params, admission(params))
    return {name: value for name, value in admitted.extra_args.items() if name != OUTCOME_KEY}


def test_the_workers_see_weights_and_no_user(make):
    seen = worker_arguments(make(), pad_user="alice", pad_beta=2, other=1)
    assert seen == {WEIGHTS: "kind=0.5", "pad_beta": 2, "other": 1, "pad_adapter": "key"}


def test_the_outcome_says_the_user_and_the_version(make):
    request = admit(make(), pad_user="alice")
    assert (request.user, request.profile_version) == ("alice", 1)
    assert request.guidance is LIMITS


def test_a_later_change_does_not_reach_an_admitted_request(make):
    admission = make()
    request = admit(admission, pad_user="alice")
    admission.profiles.store.put_stated("alice", {"brief": 1.0})
    assert request.arguments[WEIGHTS] == "kind=0.5"
    later = admit(admission, pad_user="alice")
    assert (later.arguments[WEIGHTS], later.profile_version) == ("brief=1.0", 2)


@pytest.mark.parametrize(("user", "version", "known"), [("nobody", None, False), ("shy", 1, True)])
def test_a_user_of_whom_nothing_is_known_is_answered_unguided(make, user, version, known):
    request = admit(make(), pad_user=user, pad_beta=2, other=1)
    assert (request.profile_version, request.is_known, request.guidance) == (version, known, None)
    assert worker_arguments(make(), pad_user=user, pad_beta=2, other=1) == {"other": 1}


def test_an_unknown_user_is_refused_where_the_operator_says_so(make):
    with pytest.raises(ValueError, match="accepted: a user who has a profile"):
        admit(make(refuse_unknown=True), pad_user="nobody")


def test_explicit_weights_win(make):
    request = admit(make(), pad_user="alice", pad_weights="brief=1")
    assert (request.arguments[WEIGHTS], request.profile_version) == ("brief=1", None)


@pytest.mark.parametrize("user", ["alice", "nobody"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"pad_beta": "much"},
        {"pad_beta": 11},
        {"pad_top_k": 0},
        {"pad_loud": 1},
        {"pad_explain": "perhaps"},
        {"pad_adapter": "work"},
        {"pad_weights": "kid=1"},
        {"pad_preference": "be kind"},
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_whoever_is_named(make, user, wrong):
    with pytest.raises(ValueError, match="[Aa]ccepted"):
        admit(make(), pad_user=user, **wrong)


@pytest.mark.parametrize("name", ["", "a" * 10_000_000, "a/b", "\ud800", "a\0", 5, None, ["alice"]])
def test_a_name_that_is_none_is_refused(make, name):
    with pytest.raises(ValueError, match="accepted: a name") as refused:
        admit(make(), pad_user=name)
    assert len(str(refused.value)) < 600


def test_without_profiles_a_user_is_refused_with_the_way_to_switch_them_on():
    with pytest.raises(ValueError, match="start the server with --profiles"):
        parse_guidance({USER: "alice"}, LIMITS)


def test_a_token_names_its_user_alone(make):
    admission = make(TOKENS)

    def named(user, token):
        before = user_token_header._token.set(token)
        try:
            return admit(admission, pad_user=user).profile_version
        finally:
            user_token_header._token.reset(before)

    assert named("alice", TOKENS.make("alice", 60)) == 1
    assert named("alice", TOKENS.make(None, 60)) == 1
    for token in (None, TOKENS.make("bob", 60), "x"):
        for arguments in ({}, {"pad_weights": "kind=1"}):
            with pytest.raises(PermissionError) as refused:
                named("alice", token)
            assert "alice" not in str(refused.value), arguments
    assert (
        admit(admission, pad_weights="kind=1") is LIMITS
    )  # a request that names nobody needs none


class Engine:
    """What admission reads of an AsyncLLM; a worker that was asked would fail."""

    tokenizer = None

    def __init__(self, admission):
        self.input_processor = SimpleNamespace(pad_admission=admission)


async def answers(_engine, _prompt, params):
    """An answer of two tokens, with the arguments that reached the engine."""
    answer = SimpleNamespace(index=0, token_ids=[1, 2])
    yield SimpleNamespace(outputs=[answer], finished=True, seen=params.extra_args)


def generate(admission, **arguments):
    """The last output of a request."""

    async def last():
        params = SamplingParams(extra_args=arguments)
        outputs = front_end_checks._generate(answers, Engine(admission), "Hi", params)
        return [output async for output in outputs][-1]

    return asyncio.run(last())


def test_an_unguided_users_answer_says_so_and_no_worker_is_asked(make):
    output = generate(make(), pad_user="nobody", pad_beta=2)
    assert output.pad == {
        "guided_tokens": 0,
        "unguided_tokens": 2,
        "stopped": False,
        "user": "nobody",
        "profile_version": None,
    }
    assert set(output.seen) == {OUTCOME_KEY}


def test_a_guided_users_answer_has_the_workers_counts(make, monkeypatch):
    async def fetch(_key):
        return {"guided_tokens": 2, "unguided_tokens": 0, "stopped": False}

    monkeypatch.setattr(outcome_rpc, "_fetcher", lambda _: SimpleNamespace(fetch=fetch))
    output = generate(make(), pad_user="alice")
    assert output.pad["guided_tokens"] == 2
    assert (output.pad["user"], output.pad["profile_version"]) == ("alice", 1)
    assert total_outcome([output.pad, output.pad])["profile_version"] == 1
    assert output.seen[WEIGHTS] == "kind=0.5"


def test_what_may_not_be_named_is_a_403_and_a_broken_database_a_503(make, monkeypatch):
    admission = make(TOKENS)
    with pytest.raises(GracefulHTTPError) as refused:
        generate(admission, pad_user="alice")
    assert refused.value.http_status == 403
    admission = make()

    def fail(_user):
        raise profile_admission.SQLAlchemyError("secret words")

    monkeypatch.setattr(admission.profiles.cache, "weights", fail)
    with pytest.raises(GracefulHTTPError) as broken:
        generate(admission, pad_user="alice")
    assert broken.value.http_status == 503
    assert "secret" not in str(broken.value)


def test_a_header_reaches_admission_through_vllms_own_wrappers_and_no_other_request():
    app = FastAPI()
    app.add_middleware(user_token_header.UserTokenMiddleware)

    @app.post("/ask")
    @with_cancellation
    async def ask(body: dict, raw_request: Request):
        await asyncio.sleep(body["seconds"])
        return user_token_header.current_token()

    client = TestClient(app)
    jobs = [(n, {"X-PAD-User-Token": f"t{n}"} if n % 2 else {}) for n in range(8)]

    def post(job):
        body = {"seconds": 0.2 - job[0] / 50}
        return client.post("/ask", json=body, headers=job[1]).json()

    with client, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(post, jobs)) == [f"t{n}" if n % 2 else None for n in range(8)]


def test_a_server_without_dimensions_has_no_profiles():
    with pytest.raises(ValueError, match="has no adapter"):
        open_profiles(PADConfig(instructions=True, profiles="users.db"), ())


def test_a_prior_of_people_that_cannot_be_read_stops_the_start(tmp_path):
    settings = PADConfig("a", profiles=str(tmp_path / "u.db"), profile_prior=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="prior of people .* accepted: what `pad-vllm fit"):
        open_profiles(settings, ("kind",))


def test_a_database_that_cannot_be_opened_stops_the_start(tmp_path):
    (tmp_path / "users.db").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(ValueError, match="cannot be opened: file is not a database"):
        open_profiles(PADConfig("a", profiles=str(tmp_path / "users.db")), ("kind",))
