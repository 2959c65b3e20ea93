"""The routes of users over an app whose front end and chat handler only look like vLLM's."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")
pytest.importorskip("sqlalchemy")
pytest.importorskip("jwt")

from fastapi.testclient import TestClient
from front_end_app import front_end_app
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

from pad_vllm.profiles.database import Database
from pad_vllm.profiles.profile_weights import WeightLearner
from pad_vllm.profiles.user_tokens import UserTokens
from pad_vllm.request_limits import RequestLimits
from pad_vllm.serving.frontend import profile_admission
from pad_vllm.serving.frontend.profile_admission import ProfileAdmission
from pad_vllm.vllm_api.prometheus_metrics import pad_metrics

DIMENSIONS = ("kind", "brief", "formal")
LIMITS = RequestLimits(dimensions=DIMENSIONS, beta=1.0, top_k=5, max_beta=10.0, max_top_k=100)
TOKENS = UserTokens("s" * 40)
KEY = {"Authorization": "Bearer key"}
ROUTES = (
    ("GET", "/v1/pad/dimensions"),
    ("GET", "/v1/pad/users/alice"),
    ("PUT", "/v1/pad/users/alice"),
    ("DELETE", "/v1/pad/users/alice"),
    ("POST", "/v1/pad/users/alice/question"),
    ("POST", "/v1/pad/users/alice/choices"),
)


class Chat:
    """Answers with what it was asked under, unless told otherwise."""

    def __init__(self):
        self.asked, self.says = [], None

    async def create_chat_completion(self, request, _raw):
        self.asked.append(request)
        if isinstance(self.says, SimpleNamespace):
            return self.says
        text = self.says or f"{request.vllm_xargs['pad_weights']} {secrets.token_hex(4)}"
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text))])


@pytest.fixture
def make(tmp_path):
    """A client of a server with profiles."""
    opened = []

    def make_client(tokens=None, key=None):
        profiles = ProfileAdmission(
            Database(str(tmp_path / "users.db")), WeightLearner(DIMENSIONS), tokens
        )
        profiles.cache.start()
        opened.append(profiles)
        app = front_end_app(LIMITS, profiles=profiles)
        if key:
            app.add_middleware(AuthenticationMiddleware, tokens=[key])
        app.state.openai_serving_chat = Chat()
        client = TestClient(app, raise_server_exceptions=False)
        client.profiles, client.chat = profiles, app.state.openai_serving_chat
        return client

    yield make_client
    for profiles in opened:
        profiles.cache.stop()


@pytest.fixture
def client(make):
    return make()


def path(user, rest=""):
    return f"/v1/pad/users/{user}{rest}"


def answered(client, user, chosen=0, **more):
    """Ask a question and answer it -> (question, profile)."""
    question = client.post(path(user, "/question"), json={}).json()
    body = {"question": question["question"], "chosen": chosen, **more}
    answer = client.post(path(user, "/choices"), json=body)
    assert answer.status_code == 200, answer.text
    return question, answer.json()


def test_a_user_is_asked_chooses_and_is_known(client):
    question, profile = answered(client, "alice")
    assert len(question["answers"]) == 2
    assert question["messages"][0]["role"] == "user"
    assert set(question) == {"question", "messages", "answers"}  # the weights stay here
    asked = [request.vllm_xargs["pad_weights"] for request in client.chat.asked]
    liked = dict(part.split("=") for part in asked[0].split(","))
    agreement = sum(profile["weights"][name] * float(liked[name]) for name in liked)
    assert agreement > 0
    assert profile["choices"] == 1
    assert profile["user"] == "alice"
    assert set(profile["intervals"]) == set(DIMENSIONS)
    assert client.get(path("alice")).json() == profile
    assert client.profiles.cache.weights("alice").pad_weights == profile["pad_weights"]


def test_a_question_is_about_what_the_client_says(client):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    asked = client.post(
        path("alice", "/question"), json={"messages": turns, "max_tokens": 7, "temperature": 0}
    )
    assert asked.json()["messages"] == turns
    (one, other) = client.chat.asked
    assert (one.max_tokens, one.temperature) == (7, 0)
    assert one.vllm_xargs != other.vllm_xargs
    prompted = client.post(path("alice", "/question"), json={"prompt": "Hello?"}).json()
    assert prompted["messages"] == [{"role": "user", "content": "Hello?"}]


def test_equal_answers_are_no_question_and_make_no_user(client):
    client.chat.says = "always the same"
    asked = client.post(path("alice", "/question"), json={})
    assert asked.status_code == 422
    assert "equal or empty" in asked.text
    assert client.get(path("alice")).status_code == 404


def test_what_the_server_refuses_of_a_question_reaches_the_client(client):
    error = SimpleNamespace(message="too long for the model", code=400)
    client.chat.says = SimpleNamespace(error=error)
    asked = client.post(path("alice", "/question"), json={"prompt": "a " * 1000})
    assert (asked.status_code, asked.json()["error"]["message"]) == (400, "too long for the model")


def test_ties_strengths_and_thumbs_count(client):
    _, tied = answered(client, "alice", "tie")
    assert set(tied["weights"].values()) == {0}
    thumb = {"answer": "Sure!", "weights": {"kind": 1, "brief": -1}, "liked": True, "strength": 3}
    liked = client.post(path("alice", "/choices"), json=thumb).json()
    assert liked["choices"] == 2
    assert liked["weights"]["kind"] > 0 > liked["weights"]["brief"]
    disliked = {**thumb, "liked": False, "prompt": "Do you?"}
    for _ in range(2):
        profile = client.post(path("alice", "/choices"), json=disliked).json()
    assert profile["weights"]["kind"] < 0


def test_stated_weights_are_the_beginning_and_choices_stay(client):
    stated = client.put(path("alice"), json={"weights": {"kind": 0.5}}).json()
    assert stated["weights"] == {"kind": 0.5, "brief": 0.0, "formal": 0.0}
    assert stated["pad_weights"] == "kind=0.5"
    assert stated["choices"] == 0
    answered(client, "alice")
    again = client.put(path("alice"), json={"weights": {"formal": 1}}).json()
    assert again["choices"] == 1
    assert again["weights"]["formal"] > 0


def test_deletion_leaves_nothing(client):
    answered(client, "alice")
    assert client.delete(path("alice")).status_code == 204
    assert client.get(path("alice")).status_code == 404
    assert client.delete(path("alice")).status_code == 404
    assert client.profiles.cache.weights("alice") is None


def test_a_question_of_another_user_is_not_found(client):
    question = client.post(path("alice", "/question"), json={}).json()["question"]
    for user, known in (("bob", question), ("alice", "nothing"), ("alice", "' OR 1=1 --")):
        body = {"question": known, "chosen": 0}
        assert client.post(path(user, "/choices"), json=body).status_code == 404
    assert client.get(path("bob")).status_code == 404


ASSISTANT_LAST = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
TEXTS = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
THUMB = {"answer": "a", "weights": {"kind": 1}, "liked": True}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (TEXTS, "does not read texts of users"),
        ({**TEXTS, "rejected": "a"}, "another text than chosen"),
        ({**TEXTS, "rejected": ""}, "rejected is ''"),
        ({**TEXTS, "rejected": None}, "another text than chosen"),
        ({**TEXTS, "rejected": " \n"}, "not blank"),
        ({**TEXTS, "chosen": 0}, "the text that was preferred"),
        ({**TEXTS, "chosen": 5.5}, "chosen"),
        ({**TEXTS, "prompt": None}, "no turn of a user"),
        ({"chosen": "a", "rejected": "b"}, "no turn of a user"),
        ({"messages": ASSISTANT_LAST, "chosen": "a", "rejected": "b"}, "no turn of a user"),
        ({**TEXTS, "messages": ASSISTANT_LAST}, "one of them"),
        ({**TEXTS, "more": 1}, "more is 1"),
        ({**TEXTS, "liked": True}, "rejected, liked given"),
        ({"question": "q", "chosen": 2}, '0 (the first answer), 1 (the second) or "tie"'),
        ({"question": "q", "chosen": True}, "chosen"),
        ({"question": "q"}, "chosen is None"),
        ({"question": "q", "chosen": 0, "weights": {"kind": 1}}, "weights beside question"),
        ({"question": "q", "chosen": 0, "liked": True}, "question, liked given"),
        ({"question": "q", "chosen": 0, "strength": 0}, "strength is 0"),
        ({"question": "q", "chosen": 0, "strength": 11}, "strength is 11"),
        ({"question": "q", "chosen": 0, "more": 1}, "more is 1"),
        ({}, "none given"),
        ([], "the body"),
        ({**THUMB, "weights": None}, "not guided"),
        ({**THUMB, "weights": {}}, "not guided"),
        ({**THUMB, "weights": {"kind": 0}}, "not guided"),
        ({**THUMB, "weights": {"kind": 11}}, "-10 to 10"),
        ({**THUMB, "weights": {"kid": 1}}, "Did you mean 'kind'?"),
        ({**THUMB, "weights": {"kind": "nan"}}, "a finite number"),
        ({**THUMB, "weights": "kind"}, "name=number"),
        ({**THUMB, "liked": "yes"}, "liked is 'yes'"),
        ({**THUMB, "prompt": "a", "messages": [{"role": "bot", "content": "a"}]}, "role"),
    ],
)
def test_a_choice_that_says_nothing_is_refused_with_the_reason(client, body, said):
    answer = client.post(path("alice", "/choices"), json=body)
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]
    assert client.get(path("alice")).status_code == 404


def test_a_text_with_half_a_character_is_refused(client):
    body = b'{"question": "\\ud800", "chosen": 0}'
    headers = {"Content-Type": "application/json"}
    answer = client.post(path("alice", "/choices"), content=body, headers=headers)
    assert answer.status_code == 400
    assert "unicode" in answer.text


@pytest.mark.parametrize(
    "body",
    [
        {"weights": {"kind": 1}, "sentence": "short, please"},
        {"sentence": "short, please"},
        {"weights": {"kid": 1}},
        {"weights": {}},
        {"weights": {"kind": 1e9}},
        {"weights": {"kind": [1]}},
        {},
    ],
)
def test_what_cannot_be_stated_is_refused(client, body):
    assert client.put(path("alice"), json=body).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a", "messages": [{"role": "user", "content": "b"}]},
        {"messages": []},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": "a"}] * 65},
        {"prompt": ""},
        {"max_tokens": 0},
        {"max_tokens": 10**9},
        {"temperature": -1},
        {"temperature": "hot"},
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(client, body):
    assert client.post(path("alice", "/question"), json=body).status_code == 400
    assert client.chat.asked == []


@pytest.mark.parametrize(
    "name",
    ["a" * 129, "%20a", "a%00b", "%FF", "a%0Ab", "%C0%AF", "%ED%A0%80", "a%5Cb", "%E2%80%AEb"],
)
def test_a_name_of_odd_bytes_is_a_400(client, name):
    for method, rest, body in (
        ("GET", "", None),
        ("POST", "/choices", THUMB),
        ("POST", "/question", {}),
        ("DELETE", "", None),
    ):
        answer = client.request(method, path(name, rest), json=body)
        assert answer.status_code == 400, answer.text
        assert "accepted: a name" in answer.text


def test_a_slash_in_a_name_reaches_no_user(client):
    assert client.get(path("a%2Fb")).status_code == 404
    assert client.get(path("..")).status_code == 404


@pytest.mark.parametrize("name", ["%D0%B0%D0%BB%D0%B8%D1%81%D0%B0", "'; DROP TABLE pad_users; --"])
def test_a_name_of_any_script_works(client, name):
    assert client.put(path(name), json={"weights": {"kind": 1}}).status_code == 200
    assert client.get(path(name)).json()["weights"]["kind"] == 1


def test_enormous_texts_are_refused(client):
    for size, status in ((900_000, 400), (2_000_000, 413)):
        body = {**TEXTS, "chosen": "a" * size}
        assert client.post(path("alice", "/choices"), json=body).status_code == status


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_no_route_answers_without_the_key(make, method, route):
    client = make(key="key")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-PAD-User-Token": "key"}):
        assert client.request(method, route, json={}, headers=headers).status_code == 401
    assert client.request(method, route, json={}, headers=KEY).status_code != 401


@pytest.mark.parametrize(("method", "route"), ROUTES[1:])
def test_a_token_reaches_its_own_user_alone(make, method, route):
    client = make(TOKENS)
    client.profiles.store.put_stated("alice", {"kind": 1.0})
    mine, others = TOKENS.make("alice", 60), TOKENS.make("bob", 60)
    for token in (None, "", "alice", others, TOKENS.make("alice", -5)):
        headers = {} if token is None else {"X-PAD-User-Token": token}
        answer = client.request(method, route, json={}, headers=headers)
        assert answer.status_code == 403
        assert "alice" not in answer.text
        assert "bob" not in answer.text
    for token in (mine, TOKENS.make(None, 60)):
        answer = client.request(method, route, json={}, headers={"X-PAD-User-Token": token})
        assert answer.status_code != 403


def test_without_profiles_the_routes_say_how_to_switch_them_on(make):
    client = make()
    client.app.state.engine_client.input_processor.pad_admission.profiles = None
    answer = client.get(path("alice"))
    assert answer.status_code == 400
    assert "--profiles" in answer.text


def test_a_database_that_fails_is_a_503_without_its_words(client, monkeypatch):
    def fail(*_):
        raise profile_admission.SQLAlchemyError("secret words")

    monkeypatch.setattr(client.profiles.store, "get", fail)
    answer = client.get(path("alice"))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "secret" not in answer.text


def test_too_many_at_once_are_asked_to_come_again(client, monkeypatch):
    monkeypatch.setattr(profile_admission, "_MAX_WAITING", 1)
    slow = client.profiles.store.get

    def get(user):
        time.sleep(0.3)
        return slow(user)

    monkeypatch.setattr(client.profiles.store, "get", get)
    with client, ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(lambda _: client.get(path("alice")).status_code, range(4)))
    assert set(statuses) == {404, 503}


def test_posted_choices_are_counted(client):
    before = pad_metrics()._choices._value.get()
    answered(client, "alice")
    assert pad_metrics()._choices._value.get() == before + 1
