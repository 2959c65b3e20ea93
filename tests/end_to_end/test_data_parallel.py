"""Two engines behind one server: of an answer the one that had it is asked, and all figures add up."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import tiny
from engine_processes import free_port, serving
from prometheus_client.parser import text_string_to_metric_families

pytestmark = [pytest.mark.engine, pytest.mark.exhaustive]

TOKENS = 8
ASKED = 6  # at once, so that both engines have some


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    root = tmp_path_factory.mktemp("data_parallel")
    base = tiny.checkpoint("llama", root / "base")
    adapter = tiny.write_adapter(base, root / "adapter", fork_layer=2, std=0.15, beta=1.0)
    port = free_port()
    command = [sys.executable, "-m", "pad_vllm", "serve", base, "--adapter", adapter]
    command += ["--served-model-name", "base", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "256", "--max-num-seqs", "8", "--host", "127.0.0.1"]
    command += ["--port", port, "--data-parallel-size", "2", "--api-server-count", "1"]
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with serving(command, root / "log", port, own) as address:
        yield address


def ask(url, n=1, **guidance):
    body = {"model": "base", "prompt": "Hello", "max_tokens": TOKENS, "ignore_eos": True}
    body |= {"n": n, "temperature": int(n > 1)}
    if guidance:
        body["vllm_xargs"] = guidance
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=300)
    answer.raise_for_status()
    return answer.json()


def counted(url, name, **labels):
    """The sum of a counter's series in /metrics."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_each_answer_has_an_outcome_and_each_row_is_counted_once(url):
    with ThreadPoolExecutor(ASKED) as pool:
        answers = list(pool.map(lambda _: ask(url, pad_weights="helpful=1"), range(ASKED)))
    assert [answer["pad"] for answer in answers] == [
        {"guided_tokens": TOKENS, "unguided_tokens": 0, "stopped": False}
    ] * ASKED
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    assert ask(url)["choices"][0]["text"] != answers[0]["choices"][0]["text"]
    several = ask(url, n=4, pad_weights="helpful=1")
    assert several["pad"] == {
        "guided_tokens": 4 * TOKENS,
        "unguided_tokens": 0,
        "stopped": False,
    }
    for engine in "01":
        assert counted(url, "vllm:request_success_total", engine=engine) > 0
    assert counted(url, "pad:rows_guided_total") == TOKENS * (ASKED + 4)
    assert counted(url, "pad:tokens_guided_total") == TOKENS * (ASKED + 4)
