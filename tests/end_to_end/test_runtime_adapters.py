"""Adapters that come and go on a running server, through vLLM's own endpoints, beside LoRAs of vLLM's: each
answer is the one of an engine that had everything from the start.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import tiny
from engine_processes import V2_ENV, engines, free_port, pad, serving
from instructed_twin import InstructedTwin, require_twins_tokens
from mixed_requests import greedy

from pad_vllm.training.merged_base import merge_lora

pytestmark = [pytest.mark.engine, pytest.mark.exhaustive]

TOKENS = 192  # as many as take longer than to load an adapter
PROMPT = [3 + 7 * place % 256 for place in range(12)]
LORA = {
    "enable_lora": True,
    "max_lora_rank": 8,
    "max_loras": 3,
}  # a slot to spare, see test_lora.py
WEIGHTS = {"own": "helpful=1", "work": "warm=1", "late": "calm=1,loud=-1"}
KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The base, adapters and LoRAs by name."""
    root = tmp_path_factory.mktemp("run_time")
    base = tiny.checkpoint("llama", root / "base")
    layers = tiny.config("llama").num_hidden_layers
    dimensions = {"own": ("helpful", "brief"), "work": ("warm",), "late": ("calm", "loud", "dry")}
    folders = {
        name: tiny.write_adapter(
            base,
            root / name,
            fork_layer=layers,
            std=0.2,
            head_rank=4 + seed,
            seed=seed,
            dimensions=names,
            constants=name == "late",
            gates=name == "late",
        )
        for seed, (name, names) in enumerate(dimensions.items())
    }
    loras = {name: tiny.write_lora(base, root / name, seed) for seed, name in enumerate(["a", "b"])}
    return root, base, folders, loras


def guidance(name):
    """A request's arguments for the adapter of this name."""
    named = {} if name == "own" else {"pad_adapter": name}
    return {"pad_weights": WEIGHTS[name], **named}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((V2_ENV, []), id="v2"),
        pytest.param(({}, []), id="v1"),
        pytest.param(({}, ["--tensor-parallel-size", "2"]), id="two ranks"),
    ],
)
def server(request):
    """The environment and flags of a server."""
    return request.param


@pytest.fixture(scope="module")
def expected(made, server):
    """The tokens of an engine that has everything from the start: of each adapter, LoRA, and of neither."""
    _, base, folders, loras = made
    others = {name: str(folder) for name, folder in folders.items() if name != "own"}
    asked = {name: greedy(PROMPT, TOKENS, guidance(name)) for name in WEIGHTS}
    asked["none"] = greedy(PROMPT, TOKENS)
    for number, (name, folder) in enumerate(loras.items(), 1):
        asked[name] = {**greedy(PROMPT, TOKENS), "lora": [name, number, str(folder)]}
    llm = pad(base, folders["own"], {"adapters": others}, **LORA)
    (result,) = engines([{"llm": llm, "requests": list(asked.values())}], server[0] or None)
    tokens = [output["token_ids"] for output in result["outputs"]]
    assert len(set(map(tuple, tokens))) == len(tokens)
    return dict(zip(asked, tokens, strict=True))


@pytest.fixture(scope="module")
def url(made, server, expected):
    root, base, folders, loras = made
    env, flags = server
    port = free_port()
    command = [sys.executable, "-m", "pad_vllm", "serve", base, "--adapter", folders["own"]]
    command += ["--served-model-name", "base", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "256", "--max-num-seqs", "4", "--host", "127.0.0.1"]
    command += ["--port", port, "--api-key", "secret", "--enable-lora", "--max-lora-rank", "8"]
    command += ["--max-loras", "3", "--lora-modules", f"a={loras['a']}", *flags]
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    with serving(command, root / f"log{port}", port, {**env, **own}) as address:
        yield address


FORK, BLOCK = 1, 32
LONG_PROMPT = [3 + 11 * place % 256 for place in range(70)]  # two blocks of the prefix cache


@pytest.fixture(scope="module")
def learned(made):
    """Adapters with prefixes of the same names, learned differently."""
    root, base, _, _ = made
    return {
        name: tiny.write_adapter(
            base,
            root / name,
            fork_layer=tiny.config("llama").num_hidden_layers,
            std=0.15,
            seed=seed,
            dimensions=("warm", "dry"),
            prefixes=("warm", "curt"),
            prefix_fork_layer=FORK,
        )
        for seed, name in enumerate(("first", "second"), 5)
    }


@pytest.fixture(scope="module", params=[V2_ENV, {}], ids=["v2", "v1"])
def instructed_url(request, made, learned):
    """A server that takes instructions, and whose own adapter has no learned prefixes."""
    root, base, folders, _ = made
    port = free_port()
    command = [sys.executable, "-m", "pad_vllm", "serve", base, "--adapter", folders["own"]]
    command += ["--served-model-name", "base", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "256", "--max-num-seqs", "8", "--host", "127.0.0.1"]
    command += ["--port", port, "--api-key", "secret", "--instructions", "--fork-layer", FORK]
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    with serving(command, root / f"log{port}", port, {**request.param, **own}) as address:
        yield address


def preferring(url, named, *asked):
    """The answers to requests with these arguments, all at once; named: `pad_adapter` of all, or {}."""

    def answer(arguments):
        content = {"model": "base", "prompt": LONG_PROMPT, "max_tokens": 12, "temperature": 0}
        content |= {"ignore_eos": True, "return_token_ids": True}
        response = post(url, "completions", {**content, "vllm_xargs": {**arguments, **named}})
        response.raise_for_status()
        return response.json()

    with ThreadPoolExecutor(len(asked)) as threads:
        return [*threads.map(answer, asked)]


def require_answers_of(made, adapter, asked, answers):
    """Fails unless they are the PyTorch twin's under the adapter in a folder."""
    twin = InstructedTwin(made[1], adapter, fork_layer=FORK, block_size=BLOCK)
    outputs = [
        {
            "prompt_token_ids": LONG_PROMPT,
            "token_ids": answer["choices"][0]["token_ids"],
            "pad": answer["pad"],
        }
        for answer in answers
    ]
    require_twins_tokens(
        twin, [greedy(LONG_PROMPT, 12, one) for one in asked], {"outputs": outputs}
    )


def test_learned_prefixes_come_and_go_with_their_adapter(instructed_url, made, learned):
    url, folders = instructed_url, made[2]
    asked = [
        {"pad_preference": "warm"},
        {"pad_preference": "curt", "pad_beta": -1.5, "pad_top_k": 7},
        {"pad_preference": "warm", "pad_weights": "dry=1", "pad_beta": 2.0},
        {"pad_preference": "be funny", "pad_weights": "warm=-1"},
        {"pad_weights": "warm=1"},
    ]
    of_own = [{"pad_preference": "warm"}, {"pad_weights": "helpful=1"}]  # a sentence, to this one
    named = {"pad_adapter": "late"}
    for folder in (learned["first"], learned["second"], learned["first"]):
        assert load(url, "late", folder, load_inplace=True).status_code == 200
        require_answers_of(made, folder, asked, preferring(url, named, *asked))
        require_answers_of(made, folders["own"], of_own, preferring(url, {}, *of_own))
    assert load(url, "again", learned["first"]).status_code == 200  # the same prefixes
    assert unload(url, "late").status_code == 200
    again = {"pad_adapter": "again"}
    require_answers_of(made, learned["first"], asked, preferring(url, again, *asked))
    late = {"model": "base", "prompt": PROMPT, "vllm_xargs": {**asked[0], **named}}
    assert "accepted: again" in refusal(post(url, "completions", late))


def body(name):
    """A completion of the prompt by an adapter, a LoRA or neither."""
    asked = {"model": "base", "prompt": PROMPT, "max_tokens": TOKENS, "ignore_eos": True}
    asked |= {"temperature": 0, "return_token_ids": True}
    if name in WEIGHTS:
        return {**asked, "vllm_xargs": guidance(name)}
    return asked if name == "none" else {**asked, "model": name}


def post(url, path, content, headers=KEY):
    return httpx.post(f"{url}/v1/{path}", json=content, headers=headers, timeout=300)


def tokens(url, name):
    answer = post(url, "completions", body(name))
    answer.raise_for_status()
    return answer.json()["choices"][0]["token_ids"]


def refusal(answer):
    assert answer.status_code == 400
    return answer.json()["error"]["message"]


def load(url, name, folder, **more):
    return post(url, "load_lora_adapter", {"lora_name": name, "lora_path": str(folder), **more})


def unload(url, name):
    return post(url, "unload_lora_adapter", {"lora_name": name})


class Stream(threading.Thread):
    """An answer while it comes."""

    def __init__(self, url, name):
        super().__init__(daemon=True)
        self.url, self.asked, self.tokens = url, {**body(name), "stream": True}, []
        self.start()

    def run(self):
        kept = {"json": self.asked, "headers": KEY, "timeout": 300}
        with httpx.stream("POST", f"{self.url}/v1/completions", **kept) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        self.tokens += choice.get("token_ids") or []


def guided(url):
    """How many requests were admitted so far."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("pad:requests_guided_total")
    )


def test_an_adapter_is_loaded_and_removed_while_requests_run(url, made, expected):
    _, _, folders, _ = made
    assert "one adapter is served" in refusal(post(url, "completions", body("work")))
    assert load(url, "work", folders["work"]).text.strip('"').startswith("Success: PAD adapter")
    before = guided(url)
    names = ["work", "own", "none", "a", "work", "work"]  # more than run at once: two have to wait
    streams = [Stream(url, name) for name in names]
    while guided(url) < before + 4 or not streams[0].tokens:
        time.sleep(0.05)

    assert load(url, "late", folders["late"]).status_code == 200
    late = Stream(url, "late")
    assert unload(url, "work").status_code == 200
    assert "accepted: late" in refusal(post(url, "completions", body("work")))
    assert any(len(stream.tokens) < TOKENS for stream in streams)
    for stream, name in zip([*streams, late], [*names, "late"], strict=True):
        stream.join()
        assert stream.tokens == expected[name], name
    assert (
        load(url, "work", folders["work"]).status_code == 200
    )  # at another place, then at its own
    assert tokens(url, "work") == expected["work"]
    for name in ("work", "late"):
        assert unload(url, name).status_code == 200
    assert tokens(url, "own") == expected["own"]


def test_loras_of_vllms_own_come_by_the_same_endpoints(url, made, expected):
    loras = made[3]
    assert load(url, "b", loras["b"]).status_code == 200
    for name in ("a", "b", "none"):
        assert tokens(url, name) == expected[name]


def test_guidance_under_a_lora_is_refused(url):
    asked = {**body("own"), "model": "a"}
    assert "pad_weights together with the LoRA 'a'" in refusal(post(url, "completions", asked))
    chat = {**asked, "messages": [{"role": "user", "content": "Hi"}]}
    said = refusal(post(url, "chat/completions", {**chat, "stream": True}))
    assert "Ask for the model 'base'" in said
    said = refusal(post(url, "responses", {"model": "a", "input": "Hi", **only_xargs(asked)}))
    assert "the LoRA 'a'" in said


def test_guidance_under_the_lora_of_an_adapters_training_is_answered(url, made, tmp_path):
    root, base, _, loras = made
    merge_lora(base, loras["a"], tmp_path / "merged")
    layers = tiny.config("llama").num_hidden_layers
    under = tiny.write_adapter(
        tmp_path / "merged", root / "under", fork_layer=layers, std=0.2, dimensions=("terse",)
    )
    assert load(url, "under", under).status_code == 200
    guided = {"vllm_xargs": {"pad_weights": "terse=1", "pad_adapter": "under"}, "max_tokens": 16}
    answer = post(url, "completions", {**body("none"), **guided, "model": "a"})
    assert answer.json()["pad"]["guided_tokens"] == 16
    said = refusal(post(url, "completions", {**body("none"), **guided}))
    assert "without a LoRA, of the model 'base'" in said
    assert "trained with the LoRA 'a'" in said
    assert str(root) not in said
    assert unload(url, "under").status_code == 200


def only_xargs(asked):
    return {"vllm_xargs": asked["vllm_xargs"], "stream": True}


def test_what_cannot_be_loaded_says_why(url, made):
    root, _, folders, loras = made
    broken = root / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "pad_config.json").write_text("{")
    assert "not valid JSON" in refusal(load(url, "broken", broken))
    assert "a served model; accepted: another name" in refusal(load(url, "a", folders["work"]))
    assert load(url, "mine", folders["work"]).status_code == 200
    assert "is served already" in refusal(load(url, "mine", folders["work"]))
    assert load(url, "mine", folders["late"], load_inplace=True).status_code == 200
    assert "an adapter of PAD's; accepted: another name" in refusal(load(url, "mine", loras["a"]))
    assert unload(url, "mine").status_code == 200
    assert unload(url, "mine").status_code == 404


def test_the_key_guards_both(url, made):
    for path in ("load_lora_adapter", "unload_lora_adapter"):
        content = {"lora_name": "x", "lora_path": str(made[2]["work"])}
        assert post(url, path, content, {}).status_code == 401
