"""20,000 request bodies that ask for guidance in some spelling and place, on every route: each is refused
with a 400 or guided; none is answered unguided with a 200, and none is a 5xx.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter

import httpx
import pytest
import tiny
import tiny_tokenizers
from engine_processes import V2_ENV, free_port, serving

from pad_vllm.argument_names import ARGUMENT_NAMES, documented_spelling

pytestmark = [pytest.mark.engine, pytest.mark.exhaustive]

COUNT, AT_ONCE = 20_000, 48
CHAT = [{"role": "user", "content": "Hi", "pad_weights": "said, not meant"}]
ROUTES = {
    "/v1/chat/completions": {"messages": CHAT[:1], "max_tokens": 1},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 1},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 1},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
    "/v1/chat/completions/batch": {"messages": [CHAT], "max_tokens": 1},
    "/inference/v1/generate": {"token_ids": [5, 6], "sampling_params": {"max_tokens": 1}},
}
OWN_PLACE = {"/inference/v1/generate": ("sampling_params", "extra_args")}
PLACES = (
    (),
    ("extra_body",),
    ("extra_body", "vllm_xargs"),
    ("extra_args",),
    ("sampling_params",),
    ("sampling_params", "extra_args"),
    ("sampling_params", "vllm_xargs"),
    ("metadata",),
    ("chat_template_kwargs",),
    ("mm_processor_kwargs",),
    ("vllm_xargs",),
    ("vllm_xargs", "pad"),
    ("vllm_xarg",),
    ("vllmXargs",),
    ("vllm-xargs",),
    ("options", "guidance", "of mine"),
)
VALUES = (
    "helpful=1",
    '{"helpful": 1}',
    ["helpful=1"],
    {"helpful": 1},
    "helpful",
    "nobody=1",
    "",
    1,
    0.5,
    -3,
    10**30,
    True,
    None,
    [],
    {},
    [None],
    [{"pad_weights": "helpful=1"}],
    "\u0000",
    "x" * 3000,
)
OTHERS_WORDS = ("messages", "input", "prompt")  # what is said there is nobody's argument


def misspelt(name, draw):
    """A name in another case, with other separators or none."""
    name = draw.choice((name, name.upper(), name.title(), name.capitalize()))
    return name.replace("_", draw.choice(("_", "-", "")))


def put(body, place, name, value):
    for key in place:
        inner = body.get(key)
        body[key] = inner = dict(inner) if isinstance(inner, dict) else {}
        body = inner
    body[name] = value


def body_of(draw):
    """A route, the text of a body for it, and whether it asks for guidance."""
    route = draw.choice(list(ROUTES))
    body = {"model": "base", **ROUTES[route]}
    if draw.random() < 0.05:  # as documented
        put(body, OWN_PLACE.get(route, ("vllm_xargs",)), "pad_weights", "helpful=1")
        return route, json.dumps(body), True
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        name = draw.choice(("pad_weights", "pad_weights", *ARGUMENT_NAMES))
        if draw.random() < 0.6:
            name = misspelt(name, draw)
        own = OWN_PLACE.get(route, ("vllm_xargs",))
        place = own if draw.random() < 0.25 else draw.choice(PLACES)
        put(body, place, name, draw.choice(VALUES) if draw.random() < 0.7 else "helpful=1")
    text = json.dumps(body)
    if draw.random() < 0.1:  # a name twice: JSON's last one counts
        text = '{"pad_weights": "helpful=1", ' + text[1:]
        text = text[:-1] + ', "pad_weights": null}' if draw.random() < 0.5 else text
    return route, text, asks(json.loads(text))


def asks(value):
    """Whether a body has one of our names in any spelling, but where others' words are."""
    if isinstance(value, list):
        return any(map(asks, value))
    if not isinstance(value, dict):
        return False
    return any(
        documented_spelling(name) is not None or asks(inner)
        for name, inner in value.items()
        if name not in OTHERS_WORDS
    )


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    base = tiny.checkpoint("llama", root / "base", tiny_tokenizers.bytewise())
    layers = tiny.COMMON["num_hidden_layers"]
    adapter = tiny.write_adapter(base, root / "adapter", fork_layer=layers, std=0.15, beta=1.0)
    port = free_port()
    command = [sys.executable, "-m", "pad_vllm", "serve", base, "--adapter", adapter]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]
    command += ["--max-num-seqs", "32", "--host", "127.0.0.1", "--port", port]
    command += ["--served-model-name", "base", "--enable-scale-out"]
    command += ["--disable-uvicorn-access-log"]
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    with serving(command, root / "log", port, {**V2_ENV, **own}) as address:
        yield address


async def send_all(url, requests):
    """The status of each, in their order."""
    free = asyncio.Semaphore(AT_ONCE)
    headers = {"Content-Type": "application/json"}

    async def send(client, route, text):
        async with free:
            answer = await client.post(url + route, content=text, headers=headers)
            return answer.status_code, answer.text[-500:]

    # A server may close a connection that is kept just as the next request is sent on it.
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        return await asyncio.gather(*(send(client, route, text) for route, text, _ in requests))


def requests_guided(url):
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    values = [
        line.rsplit(" ", 1)[1] for line in lines if line.startswith("pad:requests_guided_total")
    ]
    return sum(map(float, values))


def test_none_that_asks_for_guidance_is_answered_without(url):
    draw = random.Random(28)
    requests = [body_of(draw) for _ in range(COUNT)]
    before = requests_guided(url)
    answers = asyncio.run(send_all(url, requests))
    found = Counter()
    for (route, text, asked), (status, said) in zip(requests, answers, strict=True):
        found[route, asked, status] += 1
        assert status < 500, (route, text[:300], said)
        if asked and status == 200 and '"pad":' in said:
            assert '"guided_tokens":1' in said, (route, text[:300], said)
        if not asked:
            assert status == 200 or "pad" not in said, (route, text[:300], said)
    print(
        "\n", json.dumps({" ".join(map(str, key)): n for key, n in sorted(found.items())}, indent=1)
    )
    guided = sum(n for (_, asked, status), n in found.items() if asked and status == 200)
    assert guided > COUNT / 100
    assert requests_guided(url) - before == guided
