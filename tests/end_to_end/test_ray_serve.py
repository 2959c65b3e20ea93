"""examples/ray_serve.py: two replicas behind one endpoint, each request with its own preference."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import tiny
from engine_processes import free_port, launched, tail

pytestmark = [pytest.mark.engine, pytest.mark.exhaustive]  # two replicas, each a server of its own

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_serve.py"
START_S = 600  # two servers with processes of their own, beside another engine, on two cores
WANTED = {
    "none": None,
    "helpful": {"pad_weights": "helpful=1"},
    "opposite": {"pad_weights": "helpful=-1"},
    "two, weak": {"pad_weights": "brief=1,humor=0.5", "pad_beta": 0.7},
}


class Endpoint:
    """Asks the one endpoint, and reads in Serve's access log which replica answered."""

    def __init__(self, url, log, session):
        self.url = url
        self.log = log
        self.session = session
        self.asked = 0

    def post(self, arguments=None, request_id="any", **rest):
        body = {
            "model": "base",
            "messages": [{"role": "user", "content": "Hello there"}],
            "temperature": 0,
            "max_tokens": 16,
            "return_token_ids": True,
            **({} if arguments is None else {"vllm_xargs": arguments}),
            **rest,
        }
        url, headers = f"{self.url}/v1/chat/completions", {"X-Request-Id": request_id}
        return httpx.post(url, json=body, headers=headers, timeout=60)

    def ask(self, arguments=None, **rest):
        """Text and token ids of the answer: random weights write few readable characters."""
        answer = self.post(arguments, **rest)
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        return choice["message"]["content"], tuple(choice["token_ids"])

    def ask_together(self, names):
        """All at once -> (name, answer, replica) a request."""
        requests = [(name, f"request-{self.asked + n}") for n, name in enumerate(names)]
        self.asked += len(requests)
        with ThreadPoolExecutor(len(requests)) as pool:
            answers = list(pool.map(lambda r: self.ask(WANTED[r[0]], request_id=r[1]), requests))
        replicas = self.replicas({request_id for _, request_id in requests})
        together = zip(requests, answers, strict=True)
        return [(name, answer, replicas[request_id]) for (name, request_id), answer in together]

    def replicas(self, request_ids):
        """Request id -> replica. The log lags behind the answers by a second or two."""
        line = re.compile(r"LLMServer:base (\S+) (\S+) -- CALL chat OK")
        found = {}
        begin = time.monotonic()
        while request_ids - found.keys():
            assert time.monotonic() < begin + 30, f"not logged: {request_ids - found.keys()}"
            time.sleep(0.5)
            text = self.log.read_text("utf-8", errors="replace")
            found = {request_id: replica for replica, request_id in line.findall(text)}
        return found


def alive(session):
    """The processes of a session, Ray's and vLLM's among them: they leave its groups, not it."""
    found = []
    for process in psutil.process_iter(["pid", "status", "cmdline"]):
        try:
            same = os.getsid(process.pid) == session
        except ProcessLookupError:
            continue
        if same and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def gone(session, seconds):
    """True as soon as the session is empty."""
    begin = time.monotonic()
    while alive(session):
        if time.monotonic() > begin + seconds:
            return False
        time.sleep(0.5)
    return True


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The example's process, where it answers, its log; nothing of it outlives the module."""
    folder = tmp_path_factory.mktemp("serve")
    model = tiny.checkpoint("llama", folder / "model")
    adapter = tiny.write_adapter(model, folder / "adapter", fork_layer=2, std=0.3)
    log = folder / "log"
    port = free_port()
    command = [sys.executable, EXAMPLE, model, "--adapter", adapter, "--replicas", 2]
    command += ["--profiles", folder / "users.db", "--port", port]
    command += ["--", "--served-model-name", "base", "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", 256, "--max-num-seqs", 8]
    env = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",  # every line says which replica it is from
    }
    with launched(command, log, env) as process:
        try:
            yield process, f"http://127.0.0.1:{port}", log
        finally:
            for left in alive(process.pid):
                left.kill()


@pytest.fixture(scope="module")
def endpoint(started):
    process, url, log = started
    begin = time.monotonic()
    while "2 replicas of base answer at" not in log.read_text("utf-8", errors="replace"):
        assert process.poll() is None, f"it ended\n{tail(log)}"
        assert time.monotonic() < begin + START_S, f"it did not start\n{tail(log)}"
        time.sleep(0.5)
    return Endpoint(url, log, process.pid)


def test_every_preference_is_kept_on_whichever_replica_it_lands(endpoint):
    answers, replicas = defaultdict(set), defaultdict(set)
    for _ in range(4):  # chance decides who answers; 24 at once nearly always reach both
        for name, answer, replica in endpoint.ask_together(list(WANTED) * 6):
            answers[name].add(answer)
            replicas[name].add(replica)
        if all(len(reached) == 2 for reached in replicas.values()):
            break

    assert {name: len(reached) for name, reached in replicas.items()} == dict.fromkeys(WANTED, 2)
    assert {name: len(given) for name, given in answers.items()} == dict.fromkeys(WANTED, 1)
    assert len(set.union(*answers.values())) == len(WANTED)


def test_what_is_posted_for_a_user_guides_every_replica(endpoint):
    users = f"{endpoint.url}/v1/pad/users"
    begin = endpoint.ask({"pad_user": "alice"})
    assert begin == endpoint.ask()
    stated = httpx.put(f"{users}/alice", json={"weights": {"helpful": 1}}, timeout=60)
    assert stated.status_code == 200, stated.text
    wanted = endpoint.ask({"pad_weights": stated.json()["pad_weights"]})
    time.sleep(5)
    named = [endpoint.ask({"pad_user": "alice"}) for _ in range(12)]  # both replicas, nearly always
    assert set(named) == {wanted} != {begin}
    assert httpx.delete(f"{users}/alice", timeout=60).status_code == 204


def test_what_does_not_guide_changes_nothing(endpoint):
    unguided = endpoint.ask()

    assert endpoint.ask({"other_plugins_argument": 1}) == unguided
    assert endpoint.ask({"pad_weights": "helpful=1", "pad_beta": 0}) == unguided
    assert endpoint.ask({"pad_weights": "helpful=1"}) != unguided


def test_a_stream_comes_in_pieces_and_is_the_same_answer(endpoint):
    lines = endpoint.post(WANTED["helpful"], stream=True).text.splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    chunks = [json.loads(one)["choices"][0] for one in data[:-1]]
    text = "".join(chunk["delta"].get("content") or "" for chunk in chunks)
    ids = tuple(token for chunk in chunks for token in chunk.get("token_ids") or ())

    assert data[-1] == "[DONE]"
    assert len(chunks) > 5
    assert (text, ids) == endpoint.ask(WANTED["helpful"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_argument_is_a_400_that_says_what_is_accepted(endpoint, stream):
    refused = endpoint.post({"pad_weights": "nope=1"}, stream=stream)
    misspelt = endpoint.post({"pad_weight": "helpful=1"}, stream=stream)

    assert (refused.status_code, misspelt.status_code) == (400, 400)
    assert "Accepted dimensions: helpful, brief, humor" in refused.text
    assert "Did you mean 'pad_weights'?" in misspelt.text


def test_serve_takes_a_replica_out_whose_engine_died(endpoint):
    before = {replica for _, _, replica in endpoint.ask_together(["helpful"] * 12)}
    engines = [p for p in alive(endpoint.session) if "EngineCore" in " ".join(p.info["cmdline"])]
    engines[0].kill()
    begin = time.monotonic()
    good = 0
    while good < 16:
        # Serve asks every ten seconds, and a core that another engine is on answers late.
        assert time.monotonic() < begin + 180, "the dead replica is still asked"
        good = good + 1 if endpoint.post().status_code == 200 else 0
    after = {replica for _, _, replica in endpoint.ask_together(["helpful"] * 12)}

    assert (len(engines), len(before)) == (2, 2)
    assert len(after) == 1
    assert after < before


def test_stopping_it_leaves_no_process_behind(started, endpoint):
    process, _, log = started
    process.send_signal(signal.SIGTERM)

    assert process.wait(60) == 0, tail(log)
    assert gone(process.pid, 20), [p.info["cmdline"] for p in alive(process.pid)]
