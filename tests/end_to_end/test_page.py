"""`pad-vllm play` on a real model, with a key: the page, a profile that guides, and a job."""

from __future__ import annotations

import sys
import time

import httpx
import pytest
from engine_processes import free_port, serving

pytestmark = pytest.mark.engine

KEY = {"Authorization": "Bearer secret"}
QUESTION = "What should I know before I get a dog?"


@pytest.fixture(scope="module")
def client(smollm2, tmp_path_factory):
    """Of a server whose folder of profiles and dimensions is its own; without the key."""
    root, port = tmp_path_factory.mktemp("play"), free_port()
    cache = root / "cache"
    (cache / "models").mkdir(parents=True)
    (cache / "models" / smollm2.name).symlink_to(smollm2)
    command = [sys.executable, "-m", "pad_vllm", "play", "--port", port, "--api-key", "secret"]
    command += ["--dtype", "float32", "--max-num-seqs", "8"]
    own = {"PAD_VLLM_CACHE": str(cache), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with serving(command, root / "log", port, own) as url:
        yield httpx.Client(base_url=url, timeout=300)


def answer(client, **arguments):
    body = {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 24,
        "temperature": 0,
        **({"vllm_xargs": arguments} if arguments else {}),
    }
    response = client.post("/v1/chat/completions", json=body, headers=KEY)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def test_the_page_needs_no_key_and_all_that_it_asks_for_does(client):
    page = client.get("/pad/")

    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/pad/js/main.js").status_code == 200
    body = {"name": "pirate", "sentence": "Answer like a pirate."}
    for refused in (
        client.get("/v1/pad/dimensions"),
        client.get("/v1/pad/jobs"),
        client.post("/v1/pad/jobs", json=body),
        client.get("/v1/pad/users/ana"),
        client.post("/v1/pad/users/ana/question", json={}),
    ):
        assert refused.status_code == 401
    offered = client.get("/v1/pad/dimensions", headers=KEY).json()
    assert offered["jobs"] is offered["profiles"] is True


def test_a_choice_makes_a_profile_that_guides(client):
    asked = client.post("/v1/pad/users/ana/question", json={"max_tokens": 16}, headers=KEY).json()
    assert len(asked["answers"]) == 2
    choice = {"question": asked["question"], "chosen": 0}
    profile = client.post("/v1/pad/users/ana/choices", json=choice, headers=KEY).json()

    assert profile["choices"] == 1
    assert answer(client, pad_user="ana") == answer(client, pad_weights=profile["pad_weights"])


@pytest.mark.exhaustive
def test_a_sentence_becomes_a_dimension_while_the_server_answers(client):
    plain = answer(client)
    body = {"name": "poetic", "sentence": "Answer in a poetic, lyrical tone with vivid images."}
    job = client.post("/v1/pad/jobs", json=body, headers=KEY).json()
    answered, deadline = 0, time.monotonic() + 1200
    while job["state"] == "running" and time.monotonic() < deadline:
        assert answer(client) == plain
        answered += 1
        time.sleep(5)
        job = client.get(f"/v1/pad/jobs/{job['job']}", headers=KEY).json()

    assert job["state"] == "done", job["message"]
    assert answered > 3
    assert answer(client) == plain
    guided = answer(client, pad_weights="poetic=1", pad_adapter=job["adapter"])
    own = answer(client, pad_weights="friendly=1")
    assert guided != plain
    assert answer(client, pad_weights="friendly=1", pad_adapter=job["adapter"]) == own
