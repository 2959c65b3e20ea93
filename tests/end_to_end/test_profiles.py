"""Users of a server over HTTP: whoever is named is answered as with the weights of their profile, whatever is
posted meanwhile; behind the key, and behind tokens. Two servers on one database agree.
"""

from __future__ import annotations

import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import psutil
import pytest
import tiny
import tiny_tokenizers
from engine_processes import V2_ENV, free_port, serving

pytest.importorskip("sqlalchemy")
pytest.importorskip("jwt")

from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.profiles.database import Database
from pad_vllm.profiles.profile_store import ProfileStore
from pad_vllm.profiles.profile_weights import WeightLearner
from pad_vllm.profiles.user_tokens import UserTokens

pytestmark = pytest.mark.engine

SECRET = "0123456789abcdef" * 3
TOKENS = UserTokens(SECRET)
ADMIN = TOKENS.make(None, 3600)
QUESTION = "Write a short note to a friend who moved away."
USERS = 200
TEXTS = {
    "messages": [{"role": "user", "content": QUESTION}],
    "chosen": "Dear Ana! Oh!",
    "rejected": "A note.",
}


class Server:
    """Asks one server, as its operator's backend."""

    def __init__(self, url, log):
        self.url, self.log = url, log
        headers = {"Authorization": "Bearer key", "X-PAD-User-Token": ADMIN}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=120)

    def chat(self, prompt=QUESTION, headers=None, **arguments):
        body = {
            "model": "base",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 12,
            "temperature": 0,
            "vllm_xargs": arguments,
        }
        return self.http.post("/v1/chat/completions", json=body, headers=headers)

    def ask(self, **arguments):
        """(text, field `pad`) of an answer."""
        answer = self.chat(**arguments)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["message"]["content"], answer.json().get("pad")

    def user(self, method, user, rest="", body=None):
        return self.http.request(method, f"/v1/pad/users/{user}{rest}", json=body)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder, base, adapter and its dimensions; the database has USERS users."""
    root = tmp_path_factory.mktemp("profiles")
    base = tiny.checkpoint("llama", root / "base", tiny_tokenizers.bytewise())
    adapter = tiny.write_adapter(base, root / "adapter", fork_layer=2, std=0.3, beta=1.0)
    dimensions = json.loads((adapter / "pad_config.json").read_text("utf-8"))["dimensions"]
    database = Database(str(root / "users.db"))
    store, rng = ProfileStore(database, WeightLearner(dimensions)), random.Random(0)
    for number in range(USERS):
        store.put_stated(f"user {number}", {n: round(rng.uniform(-2, 2), 2) for n in dimensions})
    database.close()
    return root, base, adapter, dimensions


def start(stack, made, *flags):
    root, base, adapter, _ = made
    port = free_port()
    command = [sys.executable, "-m", "pad_vllm", "serve", base, "--adapter", adapter]
    command += ["--profiles", root / "users.db", "--served-model-name", "base"]
    command += ["--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "32"]
    command += ["--host", "127.0.0.1", "--port", port, "--api-key", "key", *flags]
    env = {**V2_ENV, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PAD_TEST_SECRET": SECRET}
    log = root / f"log{port}"
    return Server(stack.enter_context(serving(command, log, port, env)), log)


@pytest.fixture(scope="module")
def server(made):
    with ExitStack() as stack:
        flags = ("--profile-reader", "cpu", "--learn-from-conversations")
        yield start(stack, made, "--profile-tokens", "env:PAD_TEST_SECRET", *flags)


def test_each_answer_is_that_of_the_weights_of_its_profiles_version(server, made):
    """Random users are named, and choices posted meanwhile: what was answered before and after differs."""
    *_, dimensions = made
    rng = random.Random(1)
    weights = {}  # (user, version) -> pad_weights

    def remember(answer):
        assert answer.status_code == 200, answer.text
        profile = answer.json()
        weights[profile["user"], profile["version"]] = profile["pad_weights"]
        return profile

    names = [f"user {rng.randrange(USERS)}" for _ in range(48)]
    for name in set(names):
        remember(server.user("GET", name))

    def post(name):
        thumb = {"answer": "a", "weights": {rng.choice(dimensions): 1}, "liked": False}
        return remember(server.user("POST", name, "/choices", thumb))

    with ThreadPoolExecutor(24) as pool:
        asked = [pool.submit(server.ask, pad_user=name) for name in names]
        posted = [pool.submit(post, name) for name in names[:16]]
        asked += [pool.submit(server.ask, pad_user=name) for name in names[:16]]
        answers = [one.result() for one in asked]
        assert all(one.result()["version"] > 1 for one in posted)
    seen = {(field["user"], field["profile_version"]): text for text, field in answers}
    assert [field["user"] for _, field in answers] == names + names[:16]
    with ThreadPoolExecutor(16) as pool:
        explicit = list(pool.map(lambda key: server.ask(pad_weights=weights[key])[0], seen))
    assert explicit == list(seen.values())
    assert len(set(explicit)) > len(explicit) / 2
    for text, field in answers:
        assert seen[field["user"], field["profile_version"]] == text


def test_a_posted_choice_guides_the_next_request(server, made):
    *_, dimensions = made
    unguided, _ = server.ask()
    text, field = server.ask(pad_user="new")
    assert text == unguided
    assert (field["user"], field["profile_version"], field["guided_tokens"]) == ("new", None, 0)
    thumb = {"answer": "a", "weights": {dimensions[0]: 1}, "liked": True}
    profile = server.user("POST", "new", "/choices", thumb).json()
    text, field = server.ask(pad_user="new", pad_beta=3)
    assert text == server.ask(pad_weights=profile["pad_weights"], pad_beta=3)[0] != unguided
    assert field["profile_version"] == profile["version"]
    assert field["unguided_tokens"] == 0


def test_ten_questions_are_asked_and_answered(server):
    for _ in range(3):
        asked = server.user("POST", "curious", "/question", {"max_tokens": 8, "temperature": 1})
        assert asked.status_code == 200, asked.text
        assert asked.json()["answers"][0] != asked.json()["answers"][1]
        body = {"question": asked.json()["question"], "chosen": 1}
        profile = server.user("POST", "curious", "/choices", body).json()
    assert profile["choices"] == 3
    assert max(map(abs, profile["weights"].values())) == 1


@pytest.mark.parametrize("api", ["completions", "responses", "messages"])
def test_every_api_takes_a_user(server, api):
    version = server.user("GET", "user 7").json()["version"]
    chat = [{"role": "user", "content": QUESTION}]
    bodies = {
        "completions": {"prompt": QUESTION, "max_tokens": 4},
        "responses": {"input": QUESTION, "max_output_tokens": 4},
        "messages": {"messages": chat, "max_tokens": 4},
    }
    body = {"model": "base", **bodies[api], "vllm_xargs": {"pad_user": "user 7"}}
    answer = server.http.post(f"/v1/{api}", json=body)
    assert answer.status_code == 200, answer.text
    if api != "messages":  # whose responses have no field of ours
        assert answer.json()["pad"]["profile_version"] == version


@pytest.mark.parametrize("stream", [False, True])
def test_a_token_names_its_user_alone_in_requests_too(server, stream):
    own = {"X-PAD-User-Token": TOKENS.make("user 1", 60)}
    nobodys = {"X-PAD-User-Token": ""}
    assert server.chat(headers=own, pad_user="user 1").status_code == 200
    for headers, user in ((own, "user 2"), (nobodys, "user 1"), (nobodys, "nobody")):
        body = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
        body["vllm_xargs"] = {"pad_user": user}
        refused = server.http.post("/v1/chat/completions", json=body, headers=headers)
        assert refused.status_code == 403
        assert user not in refused.text
    assert server.chat(headers=nobodys).status_code == 200
    assert server.http.get("/v1/pad/users/user 2", headers=own).status_code == 403


def test_nothing_answers_without_the_key(server):
    for method, path in (
        ("GET", "/v1/pad/dimensions"),
        ("GET", "/v1/pad/users/user 1"),
        ("PUT", "/v1/pad/users/user 1"),
        ("DELETE", "/v1/pad/users/user 1"),
        ("POST", "/v1/pad/users/user 1/question"),
        ("POST", "/v1/pad/users/user 1/choices"),
        ("POST", "/v1/chat/completions"),
    ):
        answer = httpx.request(
            method, f"{server.url}{path}", json={}, headers={"X-PAD-User-Token": ADMIN}
        )
        assert answer.status_code == 401, (method, path)
    assert server.http.get("/v1/pad/dimensions").json()["profiles"] is True


def test_names_of_any_bytes_and_megabytes_are_refused(server):
    for name in ("%FF%FE", "a%00", "%ED%A0%80", "a" * 129, "%0A"):
        assert server.user("GET", name).status_code == 400
        assert server.user("POST", name, "/choices", {}).status_code == 400
    for name in ("", "a" * 10_000_000, "\ufffd", "a\0b", 5, ["alice"]):
        answer = server.chat(pad_user=name)
        assert answer.status_code == 400, answer.text
        assert len(answer.text) < 2000
    big = {"prompt": "a" * 10_000_000, "chosen": "a", "rejected": "b"}
    assert server.user("POST", "alice", "/choices", big).status_code == 413
    assert server.user("GET", "'; DROP TABLE pad_users; --").status_code == 404
    assert server.user("GET", "user 1").status_code == 200


def test_two_servers_on_one_database_agree_within_five_seconds(server, made):
    *_, dimensions = made
    with ExitStack() as stack:
        other = start(stack, made)
        profile = server.user("PUT", "both", body={"weights": {dimensions[0]: 1}}).json()
        assert soon(other, "both", profile["version"])
        assert other.ask(pad_user="both")[0] == server.ask(pad_user="both")[0]
        others = {**profile, "learns_from_conversations": False}  # as it was started
        assert other.user("GET", "both").json() == others
        read = wait_until_read(lambda: server.user("POST", "both", "/choices", TEXTS)).json()
        assert soon(other, "both", read["version"])
        assert other.user("DELETE", "both").status_code == 204
        assert soon(server, "both", None)


def soon(server, user, version, within=5):
    """Whether a server comes to guide a user by this version."""
    begin = time.monotonic()
    while server.ask(pad_user=user)[1]["profile_version"] != version:
        if time.monotonic() > begin + within:
            return False
    return True


def test_texts_are_read_beside_the_server(server):
    profile = wait_until_read(lambda: server.user("POST", "reads", "/choices", TEXTS)).json()
    text, field = server.ask(pad_user="reads")
    assert field["profile_version"] == profile["version"]
    assert text == server.ask(pad_weights=profile["pad_weights"])[0]
    for body in ({**TEXTS, "chosen": "a " * 500}, {**TEXTS, "chosen": TEXTS["rejected"]}):
        refused = server.user("POST", "reads", "/choices", body)
        assert refused.status_code == 400
        assert "accepted:" in refused.text

    conversation = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": TEXTS["chosen"]},
        {"role": "user", "content": "More"},
    ]
    body = {"model": "base", "messages": conversation, "max_tokens": 8}
    learned = soon_read(server, "talks", {**body, "vllm_xargs": {"pad_user": "talks"}})
    assert (learned["conversations"], learned["learns_from_conversations"]) == (1, True)
    reader = reader_process(server)
    assert reader.nice() > reader.parent().nice()


@pytest.mark.exhaustive
def test_a_choice_between_texts_and_a_sentence_guide_within_seconds_on_a_real_model(
    smollm2, tmp_path
):
    demo = resolve_adapter("demo", "smollm2-135m")
    with ExitStack() as stack:
        flags = ("--profile-reader", "cpu", "--learn-from-conversations")
        server = start(stack, (tmp_path, smollm2, demo, None), *flags)
        assert server.http.get("/v1/pad/dimensions").json()["sentences"] is True
        unguided, _ = server.ask()
        texts = {
            "messages": [{"role": "user", "content": QUESTION}],
            "chosen": "Dear Ana! Oh, how I miss you! " * 10,
            "rejected": "Dear Ana. You have moved. This is a note. " * 10,
        }
        wait_until_read(lambda: server.user("POST", "first", "/choices", texts))
        begin = time.monotonic()
        profile = server.user("POST", "ana", "/choices", texts)
        assert profile.status_code == 200, profile.text
        assert time.monotonic() < begin + 5  # from now on every request is guided by it
        text, field = server.ask(pad_user="ana", pad_beta=3)
        assert field["profile_version"] == profile.json()["version"]
        assert text == server.ask(pad_weights=profile.json()["pad_weights"], pad_beta=3)[0]
        assert text != unguided

        sentence = {"sentence": "Be warm and friendly, please."}
        stated = wait_until_read(lambda: server.user("PUT", "bea", body=sentence)).json()
        assert stated["explained"] > 0.1
        assert stated["weights"]["friendly"] > 0.5
        assert server.user("GET", "bea").json()["weights"] == stated["weights"]
        assert server.ask(pad_user="bea", pad_beta=3)[0] != unguided

        for body in ({**texts, "chosen": "a " * 5000}, {**texts, "chosen": texts["rejected"]}):
            refused = server.user("POST", "ana", "/choices", body)
            assert refused.status_code == 400
            assert "accepted:" in refused.text
        conversation = [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": texts["chosen"]},
            {"role": "user", "content": "Thank you, that is lovely! And one to my aunt?"},
        ]
        body = {"model": "base", "messages": conversation, "max_tokens": 8}
        body["vllm_xargs"] = {"pad_user": "carl"}
        learned = soon_read(server, "carl", body)
        assert (learned["conversations"], learned["learns_from_conversations"]) == (1, True)
        assert max(map(abs, learned["weights"].values())) <= 0.5
        metrics = server.http.get("/metrics").text
        assert "pad:profile_texts_read_total 3.0" in metrics
        assert "pad:conversations_read_total 1.0" in metrics
        reader = reader_process(server)
        assert reader.nice() > reader.parent().nice()
    assert psutil.wait_procs([reader], timeout=20)[0]  # it ended with the server
    assert "Traceback" not in server.log.read_text("utf-8")


def soon_read(server, user, body, within=60):
    """The profile that a conversation made, which is posted once."""
    answer = server.http.post("/v1/chat/completions", json=body)
    assert answer.json()["pad"]["profile_version"] is None
    begin = time.monotonic()
    while (profile := server.user("GET", user)).status_code == 404:
        assert time.monotonic() < begin + within, server.http.get("/metrics").text
        time.sleep(0.2)
    return profile.json()


def reader_process(server):
    """The reader's process of a server."""
    port = server.url.rsplit(":", 1)[1]
    for process in psutil.process_iter(["cmdline"]):
        is_reader = "pad_vllm.profiles.reader_program" in (process.info["cmdline"] or ())
        if is_reader and any(port in parent.cmdline() for parent in process.parents()):
            return process
    raise AssertionError("no reader")


def wait_until_read(post, within=240):
    """The answer of a reader that may be opening its base still, or drawing what a sentence is read by."""
    begin = time.monotonic()
    while (answer := post()).status_code == 503:
        assert time.monotonic() < begin + within, answer.text
    assert answer.status_code == 200, answer.text
    return answer


def test_what_happened_is_counted_and_no_secret_is_logged(server):
    metrics = server.http.get("/metrics").text
    counts = dict(
        line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("pad:requests_of")
    )
    assert float(counts["pad:requests_of_users_total"]) > 64
    assert float(counts["pad:requests_of_unknown_users_total"]) >= 1
    log = server.log.read_text("utf-8")
    assert SECRET not in log
    assert ADMIN not in log
    assert "Traceback" not in log
