"""Which conversations are read, what becomes of a reading, and that no request notices."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")
pytest.importorskip("sqlalchemy")
pytest.importorskip("jwt")

from fastapi.testclient import TestClient
from front_end_app import front_end_app
from vllm.entrypoints.openai.chat_completion import serving as vllm_serving

from pad_vllm.config import PADConfig
from pad_vllm.profiles.background_reader import ReaderEnded, ReaderFull
from pad_vllm.profiles.database import Database
from pad_vllm.profiles.profile import UnknownUser
from pad_vllm.profiles.profile_weights import WeightLearner
from pad_vllm.profiles.user_tokens import UserTokens
from pad_vllm.request_limits import RequestLimits
from pad_vllm.serving.frontend import profile_admission, text_readings, user_token_header
from pad_vllm.serving.frontend.admission import Admission
from pad_vllm.serving.frontend.conversation_learner import ConversationLearner
from pad_vllm.serving.frontend.profile_admission import ProfileAdmission, open_profiles
from pad_vllm.vllm_api.patches import front_end_checks
from pad_vllm.vllm_api.patches.answered_chats import listen_to_chats
from pad_vllm.vllm_api.prometheus_metrics import pad_metrics
from pad_vllm.vllm_api.vllm_names import GracefulHTTPError, SamplingParams, VLLMValidationError

DIMENSIONS = ("kind", "brief")
LIMITS = RequestLimits(dimensions=DIMENSIONS, beta=1.0, top_k=5, max_beta=10.0, max_top_k=100)
TOKENS = UserTokens("s" * 40)
EARLIER = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, my dear!"}]
TURNS = [*EARLIER, {"role": "user", "content": "And you?"}]
READ = {"result": {"weights": {"kind": 0.4, "brief": 0.0}}}


class Reader:
    """Takes what is to be read; the test answers."""

    def __init__(self):
        self.asked, self.full, self.runs = [], False, True

    def ask_last(self, name, question):
        if self.full:
            raise ReaderFull("16 conversations wait")
        future = Future()
        self.asked.append((name, question, future))
        return future

    def answer(self, answer=READ):
        _, _, future = self.asked.pop(0)
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


class Server:
    """A chat handler as vLLM's: it asks admission, then answers or streams."""

    async def create_chat_completion(self, request, raw_request=None):
        params = SamplingParams(extra_args=dict(request.vllm_xargs or {}))
        if request.broken:
            return SimpleNamespace(error="no such model")
        outputs = front_end_checks._generate(_answers, self.engine_client, "Hi", params)
        return outputs if request.stream else [output async for output in outputs]


async def _answers(_engine, _prompt, params):
    answer = SimpleNamespace(index=0, token_ids=[1, 2])
    yield SimpleNamespace(outputs=[answer], finished=True, seen=params.extra_args)


@pytest.fixture
def make(tmp_path, monkeypatch):
    def make_server(tokens=None, **settings):
        profiles = ProfileAdmission(
            Database(str(tmp_path / "users.db")), WeightLearner(DIMENSIONS), tokens, **settings
        )
        profiles.cache.refresh()
        reader = Reader()
        profiles.learner = ConversationLearner(reader, profiles.store, profiles.cache)
        serving_class = type("OpenAIServingChat", (Server,), {})
        monkeypatch.setattr(vllm_serving, "OpenAIServingChat", serving_class)
        listen_to_chats(profiles.learner.hear)
        config = SimpleNamespace(served_model_name="base")
        admission = Admission(SimpleNamespace(limits=LIMITS), config, profiles=profiles)
        server = serving_class()
        server.engine_client = SimpleNamespace(
            input_processor=SimpleNamespace(pad_admission=admission), tokenizer=None
        )
        server.profiles, server.reader = profiles, reader
        return server

    return make_server


@pytest.fixture
def server(make):
    return make()


def chat(server, messages=TURNS, *, stream=False, broken=False, **arguments):
    request = SimpleNamespace(messages=messages, vllm_xargs=arguments, stream=stream, broken=broken)
    return asyncio.run(server.create_chat_completion(request, None))


def counts():
    metrics = pad_metrics()
    unread = {
        reason: metrics._unread_conversations.labels(reason)._value.get()
        for reason in ("full", "ended", "failed", "refused", "database")
    }
    return {"read": metrics._read_conversations._value.get(), **unread}


def counted(before):
    return {name: n - before[name] for name, n in counts().items() if n != before[name]}


@pytest.mark.parametrize("stream", [False, True])
def test_the_earlier_turns_of_an_answered_conversation_are_read(server, stream, tmp_path):
    before = counts()
    chat(server, stream=stream, pad_user="alice")
    ((name, question, _),) = server.reader.asked
    assert question == {"conversation": EARLIER}
    server.reader.answer()
    profile = server.profiles.store.get("alice")
    assert (profile.weights["kind"], profile.num_conversations) == (0.2, 1)
    assert server.profiles.cache.weights("alice").pad_weights == "kind=0.2"
    assert counted(before) == {"read": 1}
    stored = b"".join(file.read_bytes() for file in tmp_path.glob("users.db*"))
    assert name[1].encode() in stored
    for text in (b"Hello", b"dear", b"And you"):
        assert text not in stored


def test_a_later_request_of_a_conversation_counts_once(server):
    chat(server, pad_user="alice")
    longer = [*TURNS, {"role": "assistant", "content": "Well."}, TURNS[0]]
    chat(server, longer, pad_user="alice")
    (first, _, _), (second, question, _) = server.reader.asked
    assert first == second
    assert question == {"conversation": longer[:4]}
    server.reader.answer()
    server.reader.answer({"result": {"weights": {"kind": 0.1}}})
    profile = server.profiles.store.get("alice")
    assert (profile.weights["kind"], profile.num_conversations) == (0.05, 1)


@pytest.mark.parametrize(
    ("messages", "arguments"),
    [
        (TURNS[:1], {"pad_user": "alice"}),
        (TURNS[:2], {"pad_user": "alice"}),
        (TURNS, {}),
        (TURNS, {"pad_weights": "kind=1"}),
        (TURNS, {"pad_user": "alice", "pad_weights": "kind=1"}),
        (TURNS, {"pad_user": "stated"}),
        ([{"role": "tool", "content": "a"}, *TURNS], {"pad_user": "alice"}),
    ],
)
def test_nothing_else_is_read(server, messages, arguments, monkeypatch):
    async def fetch(_key):
        return {"guided_tokens": 2, "unguided_tokens": 0, "stopped": False}

    fetcher = SimpleNamespace(fetch=fetch)
    monkeypatch.setattr("pad_vllm.vllm_api.patches.outcome_rpc._fetcher", lambda _: fetcher)
    server.profiles.store.put_stated("stated", {"kind": 0.0})
    chat(server, messages, **arguments)
    assert server.reader.asked == []


def test_a_request_with_a_sentence_of_its_own_is_not_read(server):
    arguments = {"pad_user": "alice", "pad_preference": "be kind"}
    server.profiles.learner.hear(SimpleNamespace(vllm_xargs=arguments, messages=TURNS))
    assert server.reader.asked == []


def test_what_is_refused_is_not_read(make):
    server = make(refuse_unknown=True)
    for arguments in ({}, {"pad_beta": 99}):
        with pytest.raises(VLLMValidationError):
            chat(server, pad_user="nobody", **arguments)
    chat(server, broken=True, pad_user="nobody")
    assert server.reader.asked == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_token_is_asked_for_before_anything_is_read(make, stream):
    server = make(TOKENS)

    def named(token):
        before = user_token_header._token.set(token)
        try:
            return chat(server, stream=stream, pad_user="alice")
        finally:
            user_token_header._token.reset(before)

    for token in (None, TOKENS.make("bob", 60), "x"):
        with pytest.raises(GracefulHTTPError):
            named(token)
    assert server.reader.asked == []
    named(TOKENS.make("alice", 60))
    assert len(server.reader.asked) == 1


def test_a_full_queue_drops_a_conversation_and_counts_it(server):
    server.reader.full, before = True, counts()
    (output,) = chat(server, pad_user="alice")
    assert output.pad["user"] == "alice"
    assert counted(before) == {"full": 1}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ReaderEnded("code -9"), "ended"),
        ({"failed": "MemoryError"}, "failed"),
        ({"refused": "too long"}, "refused"),
    ],
)
def test_what_is_not_read_is_counted_and_nothing_is_learned(server, answer, reason):
    before = counts()
    chat(server, pad_user="alice")
    server.reader.answer(answer)
    assert counted(before) == {reason: 1}
    with pytest.raises(UnknownUser):
        server.profiles.store.get("alice")


def test_a_reading_that_a_later_one_replaces_is_not_counted(server):
    before = counts()
    chat(server, pad_user="alice")
    assert server.reader.asked[0][2].cancel()
    assert counted(before) == {}


def test_a_database_that_fails_is_counted(server, monkeypatch):
    def fail(*_):
        raise profile_admission.SQLAlchemyError("secret")

    before = counts()
    chat(server, pad_user="alice")
    monkeypatch.setattr(server.profiles.store, "put_conversation", fail)
    server.reader.answer()
    assert counted(before) == {"database": 1}


def test_whatever_fails_in_the_reading_touches_no_request(server, monkeypatch):
    def fail(*_):
        raise RuntimeError("anything")

    monkeypatch.setattr(server.profiles.learner._reader, "ask_last", fail)
    (output,) = chat(server, pad_user="alice")
    assert output.pad["user"] == "alice"


def test_a_user_who_was_deleted_meanwhile_stays_deleted(server):
    server.profiles.store.add_question("alice", {"kind": 1.0}, {})
    before = counts()
    chat(server, pad_user="alice")
    server.profiles.store.delete("alice")
    server.reader.answer()
    assert counted(before) == {}
    with pytest.raises(UnknownUser):
        server.profiles.store.get("alice")


def test_the_profile_and_the_server_say_whether_conversations_are_read(server):
    client = TestClient(front_end_app(LIMITS, profiles=server.profiles))
    user = "/v1/pad/users/alice"
    chat(server, pad_user="alice")
    server.reader.answer()
    thumb = {"answer": "a", "weights": {"kind": 1}, "liked": True}
    answers = [
        client.get(user),
        client.post(f"{user}/choices", json=thumb),
        client.put(user, json={"weights": {"kind": 1}}),
    ]
    for answer in answers:
        assert (answer.json()["conversations"], answer.json()["learns_from_conversations"]) == (
            1,
            True,
        )
    assert client.get("/v1/pad/dimensions").json()["learns_from_conversations"] is True
    server.profiles.learner = None
    assert client.get(user).json()["learns_from_conversations"] is False
    assert client.get("/v1/pad/dimensions").json()["learns_from_conversations"] is False


def test_it_is_off_by_default_and_needs_a_reader(tmp_path, monkeypatch):
    reader = SimpleNamespace(start=lambda: None)
    monkeypatch.setattr(text_readings, "BackgroundReader", lambda *_: reader)
    monkeypatch.setattr(text_readings, "_reader_settings", lambda *_: None)

    def learner(**settings):
        pad = PADConfig("a", profiles=str(tmp_path / "users.db"), **settings)
        profiles = open_profiles(pad, DIMENSIONS)
        profiles.cache.stop()
        return profiles.learner

    assert learner() is None
    assert learner(profile_reader="cpu") is None
    assert learner(profile_reader="cpu", learn_from_conversations=True)._reader is reader
    with pytest.raises(ValueError, match="without profile_reader.*add --profile-reader cpu"):
        learner(learn_from_conversations=True)
