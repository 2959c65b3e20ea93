"""The routes of users with a reader that answers as it is told: what is learned, what clients are told."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import pytest

pytest.importorskip("vllm")
pytest.importorskip("sqlalchemy")
pytest.importorskip("jwt")

import tiny
from fastapi.testclient import TestClient
from front_end_app import front_end_app

from pad_vllm.config import PADConfig
from pad_vllm.profiles.background_reader import ReaderEnded, ReaderFull
from pad_vllm.profiles.database import Database
from pad_vllm.profiles.profile_weights import WeightLearner
from pad_vllm.profiles.user_tokens import UserTokens
from pad_vllm.request_limits import RequestLimits
from pad_vllm.serving.frontend import text_readings
from pad_vllm.serving.frontend.profile_admission import ProfileAdmission, open_profiles
from pad_vllm.serving.frontend.text_readings import TextReadings
from pad_vllm.vllm_api.prometheus_metrics import pad_metrics

DIMENSIONS = ("kind", "brief")
LIMITS = RequestLimits(dimensions=DIMENSIONS, beta=1.0, top_k=5, max_beta=10.0, max_top_k=100)
TOKENS = UserTokens("s" * 40)
USER = "/v1/pad/users/alice"
TEXTS = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
FEATURES = {"x": {"kind": 0.4, "brief": -0.1}, "outcome": 1.0, "strength": 1.0, "length": 3.0}
READ = {"result": {"weights": {"kind": 1.0, "brief": -0.25}, "explained": 0.4321}}


class Reader:
    """Answers, or raises, or answers later where it is told nothing."""

    def __init__(self):
        self.asked, self.answer, self.runs, self.later = [], None, True, []

    def ask(self, question):
        self.asked.append(question)
        if isinstance(self.answer, ReaderFull):
            raise self.answer
        future = Future()
        self.later.append(future)
        if isinstance(self.answer, Exception):
            future.set_exception(self.answer)
        elif self.answer is not None:
            future.set_result(self.answer)
        return future


@pytest.fixture
def make(tmp_path):
    opened = []

    def make_client(tokens=None, jobs=None):
        reader = Reader()
        profiles = ProfileAdmission(
            Database(str(tmp_path / "users.db")), WeightLearner(DIMENSIONS), tokens
        )
        profiles.cache.start()
        profiles.readings = TextReadings(reader, wait_s=0.2)
        opened.append(profiles)
        app = front_end_app(LIMITS, jobs=jobs, profiles=profiles)
        client = TestClient(app, raise_server_exceptions=False)
        client.profiles, client.reader = profiles, reader
        return client

    yield make_client
    for profiles in opened:
        profiles.cache.stop()


@pytest.fixture
def client(make):
    return make()


def test_a_choice_between_texts_is_learned_from_and_no_text_is_kept(client, tmp_path):
    client.reader.answer = {"result": FEATURES}
    answer = client.post(f"{USER}/choices", json={**TEXTS, "strength": 3})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == 1
    assert answer.json()["weights"]["kind"] > 0 > answer.json()["weights"]["brief"]
    assert client.profiles.cache.weights("alice").pad_weights == answer.json()["pad_weights"]
    (asked,) = client.reader.asked
    turns = [{"role": "user", "content": "Hi"}]
    assert asked == {"messages": turns, "chosen": "Hello!", "rejected": "What?"}
    stored = b"".join(file.read_bytes() for file in tmp_path.glob("users.db*"))
    assert b"0.4" in stored
    assert b"Hello!" not in stored
    assert b"What?" not in stored


def test_a_sentence_is_stated_as_weights_are_and_its_share_is_said(client, tmp_path):
    client.reader.answer = READ
    answer = client.put(USER, json={"sentence": "warm, please"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["explained"] == 0.432
    assert answer.json()["weights"] == READ["result"]["weights"]
    weights = client.put("/v1/pad/users/bob", json={"weights": READ["result"]["weights"]}).json()
    assert weights["pad_weights"] == answer.json()["pad_weights"]
    assert "explained" not in client.get(USER).json()
    assert client.reader.asked == [{"sentence": "warm, please"}]
    assert b"please" not in b"".join(file.read_bytes() for file in tmp_path.glob("users.db*"))


@pytest.mark.parametrize(
    ("jobs", "way_out"), [(None, "pad-vllm train --teacher prompt"), (object(), "/v1/pad/jobs")]
)
@pytest.mark.parametrize(("share", "said"), [(0.04, "4%"), (float("nan"), "nan%")])
def test_a_sentence_that_the_dimensions_do_not_know_is_refused_with_the_share(
    make, jobs, way_out, share, said
):
    client = make(jobs=jobs)
    client.reader.answer = {"result": {**READ["result"], "explained": share}}
    answer = client.put(USER, json={"sentence": "like a pirate"})
    assert answer.status_code == 400
    assert f"explain {said} of what this sentence teaches" in answer.text
    assert way_out in answer.text
    assert client.get(USER).status_code == 404


WAYS = (("POST", "/choices", TEXTS), ("PUT", "", {"sentence": "short"}))


def unread(reason):
    return pad_metrics()._unread_texts.labels(reason)._value.get()


@pytest.mark.parametrize(("method", "rest", "body"), WAYS)
@pytest.mark.parametrize(
    ("answer", "status", "said", "reason"),
    [
        ({"refused": "the prompt has 9 tokens"}, 400, "the prompt has 9 tokens", None),
        (ReaderFull("16 texts wait"), 429, "16 texts wait", "full"),
        (ReaderEnded("code -9"), 503, "is not running", "ended"),
        ({"failed": "MemoryError: secret"}, 503, "failed", "failed"),
        (None, 503, "no answer in 0.2 seconds", "late"),
    ],
)
def test_what_is_not_read_is_an_error_that_says_so_and_changes_nothing(
    client, method, rest, body, answer, status, said, reason
):
    client.reader.answer = answer
    before = reason and unread(reason)
    response = client.request(method, USER + rest, json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, status)
    assert said in response.text
    assert "secret" not in response.text
    assert "code -9" not in response.text
    assert ("Retry-After" in response.headers) == (reason is not None)
    assert client.get(USER).status_code == 404
    if reason:
        assert unread(reason) == before + 1
        assert "nothing was learned" in response.text
    assert status != 503 or reason != "late" or client.reader.later[0].cancelled()


def test_a_waiting_text_blocks_no_other_request(client):
    client.profiles.readings = TextReadings(client.reader, wait_s=5)
    with client, ThreadPoolExecutor(9) as pool:
        waiting = [pool.submit(client.post, f"{USER}/choices", json=TEXTS) for _ in range(8)]
        stated = client.put("/v1/pad/users/bob", json={"weights": {"kind": 1}})
        assert stated.status_code == 200
        while len(client.reader.later) < 8:
            client.get("/v1/pad/users/bob")
        assert not any(one.done() for one in waiting)
        for future in client.reader.later:
            future.set_result({"result": FEATURES})
        assert {one.result().status_code for one in waiting} == {200}
    assert client.get(USER).json()["choices"] == 8


def test_sentences_are_offered_where_the_reader_runs(client):
    assert client.get("/v1/pad/dimensions").json()["sentences"] is True
    client.reader.runs = False
    assert client.get("/v1/pad/dimensions").json()["sentences"] is False
    client.profiles.readings = None
    offered = client.get("/v1/pad/dimensions").json()
    assert (offered["sentences"], offered["profiles"]) == (False, True)


@pytest.mark.parametrize(("method", "rest", "body"), WAYS)
def test_a_token_is_asked_for_before_anything_is_read(make, method, rest, body):
    client = make(TOKENS)
    client.reader.answer = {"refused": "read"}
    for token in ("", TOKENS.make("bob", 60)):
        headers = {"X-PAD-User-Token": token}
        assert client.request(method, USER + rest, json=body, headers=headers).status_code == 403
    assert client.reader.asked == []
    headers = {"X-PAD-User-Token": TOKENS.make("alice", 60)}
    assert client.request(method, USER + rest, json=body, headers=headers).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        b'{"sentence": "\\ud800"}',
        b'{"sentence": ""}',
        b'{"sentence": 5}',
        b'{"sentence": "a", "more": 1}',
        b'{"sentence": "a", "weights": {"kind": 1}}',
        b'{"sentence": null}',
        b'{"weights": null}',
        b'{"sentence": "\xff"}',
        b'"short"',
    ],
)
def test_a_body_that_is_no_sentence_reaches_no_reader(client, body):
    headers = {"Content-Type": "application/json"}
    answer = client.put(USER, content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert client.reader.asked == []


@pytest.fixture
def started(monkeypatch):
    """Readers that would have been started."""
    readers = []

    class Started:
        def __init__(self, settings, on_failure):
            self.settings, self.on_failure = settings, on_failure

        def start(self):
            readers.append(self)

    monkeypatch.setattr(text_readings, "BackgroundReader", Started)
    return readers


def test_the_reader_opens_the_served_base_or_the_reward_models_own(tmp_path, started):
    base = tiny.checkpoint("llama", tmp_path / "base")
    adapter = str(tiny.write_adapter(base, tmp_path / "adapter", fork_layer=2, std=0.1))
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")

    def settings(served, **more):
        pad = {"adapter": adapter, "profiles": str(tmp_path / "users.db"), **more}
        config = PADConfig.from_additional_config({"pad": pad})
        profiles = open_profiles(config, ("helpful", "brief", "humor"), served)
        profiles.cache.stop()
        return started.pop().settings if profiles.readings else None

    assert settings("served") is None
    found = settings("served", profile_reader="cpu", chat_template=str(template))
    assert (found.base, found.adapter, found.device) == ("served", adapter, "cpu")
    assert found.chat_template == "{{ messages }}"
    assert not found.allow_mismatch
    for served, more in (
        (None, {"backbone": str(base)}),
        ("served", {"engine": "resident", "backbone": str(base), "chat_template": str(template)}),
        ("served", {"backbone": str(base), "allow_backbone_mismatch": True}),
    ):
        found = settings(served, profile_reader="cuda:1", **more)
        assert (found.base, found.device, found.chat_template) == (str(base), "cuda:1", None)
        assert found.allow_mismatch == ("allow_backbone_mismatch" in more)
    with pytest.raises(ValueError, match="cannot be fetched"):
        settings("served", profile_reader="cpu", engine="resident", backbone="/nowhere/at/all")
