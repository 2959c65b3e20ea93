"""`pad-vllm serve` over HTTP: every API, good requests and bad ones, many at once.

V2 on a small random model; in the exhaustive tests V1 on SmolLM2.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import jsonschema
import openai
import pytest
import tiny
import tiny_tokenizers
from engine_processes import V2_ENV, engine, free_port, pad, serving
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoTokenizer

pytestmark = pytest.mark.engine

QUESTION = "Write a short note to a friend who moved away."
APIS = ("chat", "completions", "responses")
TOKENS = 16
BLOCK = 32


class Client:
    """Asks one server through any of its APIs: greedy, TOKENS tokens, unless told otherwise."""

    def __init__(self, url, log):
        self.url = url
        self.log = log
        # No retries: a test wants to see the first answer.
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def create(self, api, guidance=None, prompt=QUESTION, extra=None, **sampling):
        """The API's own response object."""
        extra_body = {**({"vllm_xargs": guidance} if guidance is not None else {}), **(extra or {})}
        request = {"model": "base", "temperature": 0, "extra_body": extra_body, **sampling}
        tokens = request.pop("max_tokens", TOKENS)
        if api == "responses":
            return self.openai.responses.create(input=prompt, max_output_tokens=tokens, **request)
        if api == "completions":
            return self.openai.completions.create(prompt=prompt, max_tokens=tokens, **request)
        messages = [{"role": "user", "content": prompt}]
        return self.openai.chat.completions.create(messages=messages, max_tokens=tokens, **request)

    def ask(self, api, guidance=None, **rest):
        """The text of the answer."""
        return text(api, self.create(api, guidance, **rest))

    def stream(self, api, guidance=None, **rest):
        """The pieces of the answer as they come."""
        for event in self.create(api, guidance, stream=True, **rest):
            if api == "responses":
                yield event.delta if event.type == "response.output_text.delta" else ""
            elif event.choices:
                choice = event.choices[0]
                yield (choice.text if api == "completions" else choice.delta.content) or ""

    def refusal(self, api, guidance, **rest):
        """The message of an HTTP 400."""
        with pytest.raises(openai.BadRequestError) as refused:
            self.create(api, guidance, **rest)
        assert refused.value.status_code == 400
        return str(refused.value)


def text(api, response):
    if api == "responses":
        return response.output_text
    choice = response.choices[0]
    return choice.text if api == "completions" else choice.message.content


@pytest.fixture(
    scope="module", params=["v2 small", pytest.param("v1 real", marks=pytest.mark.exhaustive)]
)
def served(request, tmp_path_factory):
    """(environment, base, adapter)."""
    if request.param == "v1 real":
        return {}, *map(request.getfixturevalue, ("smollm2", "adapter"))
    root = tmp_path_factory.mktemp("served")
    base = tiny.checkpoint("llama", root / "base", tiny_tokenizers.bytewise())
    adapter = tiny.write_adapter(base, root / "adapter", fork_layer=2, std=0.15, beta=1.0)
    return V2_ENV, base, adapter


@pytest.fixture(scope="module")
def dimensions(served):
    *_, adapter = served
    return json.loads((adapter / "pad_config.json").read_text("utf-8"))["dimensions"]


@pytest.fixture(scope="module")
def guidance(dimensions):
    # Any stronger, and the demo adapter ends the bare completion at once.
    return {"pad_weights": f"{dimensions[0]}=1", "pad_beta": 2}


@pytest.fixture(scope="module")
def offline(served, guidance):
    """What LLM.generate answers in one process: guided and not, as a chat and as a completion."""
    env, base, adapter = served
    greedy = {"temperature": 0, "max_tokens": TOKENS}
    guided = {**greedy, "extra_args": guidance}
    chat = [{"role": "user", "content": QUESTION}]
    requests = [
        {"messages": chat, "sampling": guided},
        {"messages": chat, "sampling": greedy},
        {"prompt": QUESTION, "sampling": guided},
        {"prompt": QUESTION, "sampling": greedy},
    ]
    result = engine({"llm": pad(base, adapter), "requests": requests}, env)
    assert result["runner"] == ("v2" if env else "v1")
    texts = [output["text"] for output in result["outputs"]]
    chats, completions = texts[:2], texts[2:]
    return {"chat": chats, "responses": chats, "completions": completions}


@pytest.fixture(scope="module")
def client(served, offline, tmp_path_factory):
    """One server for the whole file, in processes of its own as in production."""
    env, base, adapter = served
    log, port = tmp_path_factory.mktemp("server") / "log", free_port()
    flags = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]
    flags += ["--max-num-seqs", "16", "--host", "127.0.0.1", "--port", str(port)]
    # White space is legal JSON, and a small model under strong guidance may write nothing else.
    compact = {"backend": "xgrammar", "disable_any_whitespace": True}
    flags += ["--structured-outputs-config", json.dumps(compact)]
    flags += ["--block-size", str(BLOCK), "--enable-prompt-tokens-details"]
    flags += ["--enable-scale-out"]  # /inference/v1/generate
    flags += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    command = [sys.executable, "-m", "pad_vllm", "serve", str(base), "--adapter", str(adapter)]
    several = {**env, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    with serving([*command, "--served-model-name", "base", *flags], log, port, several) as url:
        yield Client(url, log)


def test_the_engine_runs_in_a_process_of_its_own(client, served):
    log = client.log.read_text("utf-8")
    assert "(EngineCore pid=" in log
    assert ("Using V2 Model Runner" in log) == bool(served[0])


def test_a_client_learns_which_dimensions_there_are(client, dimensions):
    told = httpx.get(f"{client.url}/v1/pad/dimensions").json()

    assert [one["name"] for one in told["dimensions"]] == dimensions
    assert (told["model"], told["engine"], told["profiles"]) == ("base", "shared", False)


@pytest.mark.parametrize("api", APIS)
def test_an_answer_is_the_offline_one(client, guidance, offline, api):
    guided, unguided = offline[api]

    assert guided != unguided
    assert client.ask(api, guidance) == guided
    assert client.ask(api) == unguided
    assert client.ask(api, {"other_plugins_argument": 1}) == unguided


@pytest.mark.parametrize("api", APIS)
def test_a_stream_has_the_same_text(client, guidance, offline, api):
    most = 0
    # vLLM joins pieces for a client that reads slowly, as one on a busy machine does.
    for _ in range(3):
        pieces = list(client.stream(api, guidance))
        assert "".join(pieces) == offline[api][0]
        most = max(most, sum(map(bool, pieces)))
    assert most > 5


def pad_field(answer):
    """The field `pad` of a response or of an event of a stream."""
    return (getattr(answer, "response", None) or answer).model_dump().get("pad")


def require_guided_throughout(field):
    assert {**field, "guided_tokens": 0} == {
        "guided_tokens": 0,
        "unguided_tokens": 0,
        "stopped": False,
    }
    assert field["guided_tokens"] > 0


@pytest.mark.parametrize("api", APIS)
def test_a_guided_answer_says_that_no_token_of_it_went_unguided(client, guidance, api):
    require_guided_throughout(pad_field(client.create(api, guidance)))
    assert pad_field(client.create(api)) is None


@pytest.mark.parametrize("api", APIS)
def test_the_last_event_of_a_stream_says_it_too_and_no_other_does(client, guidance, api):
    *others, last = [pad_field(event) for event in client.create(api, guidance, stream=True)]
    require_guided_throughout(last)
    assert not any(others)
    assert not any(pad_field(event) for event in client.create(api, stream=True))


@pytest.mark.parametrize("api", APIS)
def test_explanations_have_the_reward_of_each_token_where_requested(client, guidance, api):
    asked = {**guidance, "pad_explain": True}
    answer = client.create(api, asked)
    ((*tokens,),) = pad_field(answer)["explained"]
    assert "".join(one["token"] for one in tokens) == text(api, answer)
    assert all(math.isfinite(one["reward"]) for one in tokens)
    *_, last = client.create(api, asked, stream=True)
    assert pad_field(last) == pad_field(answer)


def test_several_prompts_are_explained_one_by_one_and_several_answers_are_not(client, guidance):
    asked = {**guidance, "pad_explain": True}
    both = client.create("completions", asked, prompt=["One", "Two"])
    said = ["".join(one["token"] for one in tokens) for tokens in pad_field(both)["explained"]]
    assert said == [choice.text for choice in both.choices]
    assert "accepted: n 1" in client.refusal("chat", asked, n=2, temperature=1.0)


def series(client):
    """What /metrics says of PAD, without the times."""
    said = httpx.get(f"{client.url}/metrics").text
    samples = [s for family in text_string_to_metric_families(said) for s in family.samples]
    return {s.name: s.value for s in samples if s.name.startswith("pad:")}


def test_what_was_guided_is_counted_in_vllms_metrics(client, guidance):
    client.create("chat", guidance)
    before = series(client)
    client.create("chat", guidance, max_tokens=20, extra={"ignore_eos": True})
    client.create(
        "completions", guidance, n=3, temperature=1.0, max_tokens=7, extra={"ignore_eos": True}
    )
    client.create("chat")
    client.refusal("chat", {"pad_weights": "kindness=1"})
    more = {name: value - before[name] for name, value in series(client).items()}
    assert more["pad:requests_guided_total"] == 2
    assert more["pad:requests_refused_total"] == 1
    assert more["pad:tokens_guided_total"] == 20 + 3 * 7
    assert more["pad:tokens_unguided_total"] == 0
    assert more["pad:rows_guided_total"] >= 20 + 3 * 7
    assert 0 < more["pad:rows_changed_total"] < more["pad:rows_guided_total"]
    assert more["pad:reward_seconds_count"] >= 20


def test_a_streams_usage_is_its_last_event_where_it_is_asked_for(client, guidance):
    wanted = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last = client.create("completions", guidance, prompt=["One", "Two"], **wanted)
    assert last.usage.completion_tokens
    require_guided_throughout(pad_field(last))


@pytest.mark.parametrize("api", APIS)
def test_an_argument_beside_vllm_xargs_is_a_400_that_shows_its_place(client, dimensions, api):
    beside = {"pad_weights": f"{dimensions[0]}=1"}
    said = client.refusal(api, None, extra=beside)
    assert '"vllm_xargs": {"pad_weights": "' in said
    assert "vllm_xargs" in client.refusal(api, None, extra=beside, stream=True)


def test_weights_may_be_written_in_three_ways(client, guidance, dimensions, offline):
    for weights in (
        json.dumps({dimensions[0]: 1}),
        [f"{dimensions[0]}=1"],
        f" {dimensions[0]} = 1,"[:-1],
    ):
        assert client.ask("chat", {**guidance, "pad_weights": weights}) == offline["chat"][0]


def test_the_anthropic_api_is_guided_too(client, guidance, offline):
    body = {
        "model": "base",
        "max_tokens": TOKENS,
        "temperature": 0,
        "messages": [{"role": "user", "content": QUESTION}],
        "vllm_xargs": guidance,
    }
    answer = httpx.post(f"{client.url}/v1/messages", json=body, timeout=60).json()

    assert answer["content"][0]["text"] == offline["chat"][0]


ROUTES = {
    "messages": {"max_tokens": 4, "messages": [{"role": "user", "content": QUESTION}]},
    "chat/completions/batch": {
        "max_tokens": 4,
        "messages": [[{"role": "user", "content": QUESTION}]] * 2,
    },
    "/inference/v1/generate": {"token_ids": [5, 6, 7], "sampling_params": {"max_tokens": 4}},
}
"""Routes whose classes ignore fields that they do not know, with a request to each."""


def post_to(client, route, body):
    path = route if route.startswith("/") else f"/v1/{route}"
    return httpx.post(f"{client.url}{path}", json={"model": "base", **body}, timeout=60)


def with_arguments(route, guidance):
    """The request to a route, with guidance where it takes it."""
    body = ROUTES[route]
    if "sampling_params" in body:
        return {**body, "sampling_params": {**body["sampling_params"], "extra_args": guidance}}
    return {**body, "vllm_xargs": guidance}


@pytest.mark.parametrize("route", ROUTES)
def test_other_routes_take_arguments_in_their_place_and_answer_without(client, guidance, route):
    before = series(client)["pad:tokens_guided_total"]
    plain = post_to(client, route, ROUTES[route])
    assert plain.status_code == 200, plain.text
    assert series(client)["pad:tokens_guided_total"] == before
    guided = post_to(client, route, with_arguments(route, guidance))
    assert guided.status_code == 200, guided.text
    assert series(client)["pad:tokens_guided_total"] > before
    wrong = post_to(client, route, with_arguments(route, {**guidance, "pad_beta": "much"}))
    assert wrong.status_code == 400, wrong.text


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "misplaced",
    [
        lambda guidance: guidance,
        lambda guidance: {"extra_body": {"vllm_xargs": guidance}},
        lambda guidance: {"Pad-Weights": guidance["pad_weights"]},
        lambda guidance: {"metadata": {"user_id": "me", "pad_weights": "a=1"}},
    ],
    ids=["top level", "extra_body", "spelling", "metadata"],
)
def test_other_routes_refuse_arguments_that_they_would_ignore(client, guidance, route, misplaced):
    answer = post_to(client, route, {**ROUTES[route], **misplaced(guidance)})
    assert answer.status_code == 400, answer.text
    place = "extra_args" if "generate" in route else "vllm_xargs"
    assert "would be ignored" in answer.text
    assert place in answer.text


def bad(first):
    """Name -> (arguments, what the refusal says)."""
    one = {"pad_weights": f"{first}=1"}
    return {
        "unknown dimension": ({"pad_weights": "nope=1"}, f"Accepted dimensions: {first}"),
        "malformed weights": ({"pad_weights": first}, f"write '{first}' as name=number"),
        "malformed JSON": ({"pad_weights": "{"}, "correct the JSON"),
        "no weight": ({"pad_weights": ""}, "name at least one dimension"),
        "dimension twice": ({"pad_weights": f"{first}=1,{first}=2"}, "each dimension once"),
        "weight NaN": ({"pad_weights": f"{first}=nan"}, "a finite number"),
        "huge weight": ({"pad_weights": f"{first}=1e30"}, "-10000 to 10000"),
        "beta NaN": ({**one, "pad_beta": "NaN"}, "a finite number"),
        "huge beta": ({**one, "pad_beta": 1e9}, "-10 to 10"),
        "k of 0": ({**one, "pad_top_k": 0}, "an integer of at least 1"),
        "huge k": ({**one, "pad_top_k": 10**6}, "an integer from 1 to 100"),
        "half a candidate": ({**one, "pad_top_k": 2.5}, "an integer of at least 1"),
        "misspelt argument": ({"pad_weight": f"{first}=1"}, "Did you mean 'pad_weights'?"),
        "text": ({**one, "pad_preference": "be kind"}, "put the text into your own prompt"),
        "no weights": ({"pad_beta": 2}, "given without pad_weights"),
    }


@pytest.mark.parametrize("name", bad(""))
@pytest.mark.parametrize("api", APIS)
def test_a_bad_argument_is_a_400_that_says_what_is_accepted(client, dimensions, api, name):
    arguments, said = bad(dimensions[0])[name]

    assert said in client.refusal(api, arguments)


@pytest.mark.parametrize("api", APIS)
def test_a_bad_argument_is_a_400_for_a_stream_as_well(client, api):
    assert "Accepted dimensions" in client.refusal(api, {"pad_weights": "nope=1"}, stream=True)


def test_a_nan_in_the_json_itself_is_a_400(client, dimensions):
    body = (
        '{"model": "base", "prompt": "Hi", "max_tokens": 1, '
        f'"vllm_xargs": {{"pad_weights": "{dimensions[0]}=1", "pad_beta": NaN}}}}'
    )
    json_type = {"Content-Type": "application/json"}
    answer = httpx.post(f"{client.url}/v1/completions", content=body, headers=json_type)

    assert answer.status_code == 400


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_beam_search_is_refused_with_pad_arguments_and_served_without(client, guidance, api):
    beams = {"extra": {"use_beam_search": True}, "n": 2, "max_tokens": 4}

    assert "use_beam_search together with pad_weights" in client.refusal(api, guidance, **beams)
    assert len(client.create(api, **beams).choices) == 2


def test_many_at_once_answer_as_each_alone(client, dimensions):
    first, last = dimensions[0], dimensions[-1]
    kinds = [
        None,
        {"pad_weights": f"{first}=1"},
        {"pad_weights": f"{last}=-1", "pad_beta": 5},
        {"pad_weights": f"{first}=0.5,{last}=1", "pad_top_k": 3},
    ]
    requests = [
        {"api": APIS[index % 3], "guidance": kinds[index % 4], "prompt": f"{index} {QUESTION}"}
        for index in range(16)
    ]
    alone = [client.ask(**request) for request in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda request: client.ask(**request), requests))

    assert together == alone
    assert len(set(alone)) > 8


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_several_answers_and_a_seed(client, guidance, api):
    hot = {"n": 2, "temperature": 1.5, "seed": 5}
    first, second = client.create(api, guidance, **hot), client.create(api, guidance, **hot)
    texts = [
        [choice.text if api == "completions" else choice.message.content for choice in one.choices]
        for one in (first, second)
    ]

    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 2


def test_several_prompts_of_one_request_are_all_guided(client, guidance):
    prompts = [QUESTION, "The weather is", "My favourite food"]
    choices = client.create("completions", guidance, prompt=prompts).choices

    alone = [client.ask("completions", guidance, prompt=prompt) for prompt in prompts]
    assert [choice.text for choice in choices] == alone


def test_an_echoed_and_scored_prompt_does_not_disturb_guidance(client, guidance, offline):
    scored = client.create("completions", guidance, echo=True, logprobs=2)
    chat = client.create("chat", guidance, extra={"prompt_logprobs": 2})

    assert scored.choices[0].text == QUESTION + offline["completions"][0]
    assert len(scored.choices[0].logprobs.tokens) > TOKENS
    assert chat.choices[0].message.content == offline["chat"][0]


NOTE = {
    "type": "object",
    "properties": {"mood": {"enum": ["happy", "sad"]}, "ready": {"type": "boolean"}},
    "required": ["mood", "ready"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def strong(guidance):
    return {**guidance, "pad_beta": 10, "pad_top_k": 2}


def test_a_schema_is_kept_under_guidance(client, strong):
    wanted = {"type": "json_schema", "json_schema": {"name": "note", "schema": NOTE}}
    jsonschema.validate(
        json.loads(client.ask("chat", strong, response_format=wanted, max_tokens=60)), NOTE
    )


@pytest.mark.parametrize(
    ("wanted", "legal"),
    [
        ({"regex": "[a-c]{3}-[0-9]{2}"}, "[a-c]{3}-[0-9]{2}"),
        ({"choice": ["certainly", "never"]}, "certainly|never"),
    ],
    ids=["regex", "choice"],
)
def test_a_pattern_is_kept_under_guidance(client, strong, wanted, legal):
    assert re.fullmatch(legal, client.ask("chat", strong, extra={"structured_outputs": wanted}))


@pytest.fixture(scope="module")
def no_blanks(served):
    """White space is legal in a tool's arguments; `compact` forbids it in a schema alone."""
    tokenizer = AutoTokenizer.from_pretrained(served[1])
    blanks = [token for token in range(len(tokenizer)) if tokenizer.decode([token]).isspace()]
    return {"logit_bias": dict.fromkeys(map(str, blanks), -100)}


@pytest.mark.parametrize("choice", ["required", "named"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_tool_is_called_in_its_syntax_under_guidance(client, strong, no_blanks, choice, stream):
    function = {"name": "note", "description": "A note.", "parameters": NOTE, "strict": True}
    tools = [{"type": "function", "function": function}]
    chosen = {"type": "function", "function": {"name": "note"}} if choice == "named" else choice
    asked = {"tools": tools, "tool_choice": chosen, "parallel_tool_calls": False, **no_blanks}
    asked |= {"max_tokens": 110, "stream": stream}
    answer = client.create("chat", strong, **asked)
    if stream:
        *others, last = answer
        deltas = [event.choices[0].delta for event in others if event.choices]
        calls = [call.function for delta in deltas for call in delta.tool_calls or ()]
        require_guided_throughout(pad_field(last))
    else:
        calls = [call.function for call in answer.choices[0].message.tool_calls]
        require_guided_throughout(pad_field(answer))
    assert [call.name for call in calls if call.name] == ["note"]
    jsonschema.validate(json.loads("".join(call.arguments or "" for call in calls)), NOTE)


def test_a_preference_may_change_from_turn_to_turn_on_a_warm_cache(client, dimensions):
    """Each turn finds the one before in the prefix cache, whoever's it was, and says what a cold one says."""
    first, last = dimensions[0], dimensions[-1]
    turns = [None, {"pad_weights": f"{first}=1"}, {"pad_weights": f"{last}=-1", "pad_beta": 3}]
    messages, before = [], []
    for number, preference in enumerate([*turns, None]):
        messages.append({"role": "user", "content": f"{number}. {QUESTION}"})
        asked = {"messages": messages, "return_token_ids": True, "ignore_eos": True}
        warm, cold = (
            client.create("chat", preference, extra={**asked, "cache_salt": salt})
            for salt in ("conversation", f"turn {number}")
        )
        said, prompt = warm.choices[0].token_ids, warm.prompt_token_ids
        assert said == cold.choices[0].token_ids
        known = shared(before, prompt) // BLOCK * BLOCK
        assert [cached(one) for one in (warm, cold)] == [known, 0]
        before = [*prompt, *said][:-1]  # nobody computed the last one's state
        messages.append({"role": "assistant", "content": text("chat", warm)})
    assert known >= 3 * BLOCK


def shared(one, other):
    """How many tokens both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def cached(answer):
    """How many of a prompt's tokens were in the prefix cache."""
    told = answer.usage.prompt_tokens_details
    return (told and told.cached_tokens) or 0


def test_a_stream_that_is_closed_early_leaves_the_server_as_it_was(client, guidance, offline):
    endless = {"max_tokens": 400, "extra": {"ignore_eos": True}}
    streams = [client.create("chat", guidance, stream=True, **endless) for _ in range(3)]
    for stream in streams:
        for _ in range(3):
            next(iter(stream))
        stream.close()

    assert client.ask("chat", guidance) == offline["chat"][0]
    assert running(client, within=20) == 0


def running(client, within):
    """Requests in the engine, waiting up to `within` seconds for there to be none."""
    begin = time.monotonic()
    while True:
        metrics = httpx.get(f"{client.url}/metrics").text.splitlines()
        (count,) = (
            float(line.split()[-1])
            for line in metrics
            if line.startswith("vllm:num_requests_running{")
        )
        if count == 0 or time.monotonic() > begin + within:
            return count
        time.sleep(0.2)


def test_after_all_this_the_answers_are_the_same_and_nothing_went_unguided(
    client, guidance, offline
):
    for api in APIS:
        assert client.ask(api, guidance) == offline[api][0]
    log = client.log.read_text("utf-8")
    assert "stay unguided" not in log
    assert "stays unguided" not in log
    assert "500 Internal Server Error" not in log
