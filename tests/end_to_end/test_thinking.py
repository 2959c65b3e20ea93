"""A reasoning model's <think> part left unguided, on V2: as plain vLLM thinks, as PAD answers."""

from __future__ import annotations

import pytest
import tiny
from engine_processes import V2_ENV, engines, pad, plain
from mixed_requests import greedy, tokens

pytestmark = [pytest.mark.engine, pytest.mark.exhaustive]

START, END = "<", ">"
PROMPTS = (f"Why? {START}Let me see", f"Why? {START}So.{END}It is", "Why? It is")
LENGTH = 12


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What plain vLLM says, PAD, and PAD that leaves reasoning alone."""
    root = tmp_path_factory.mktemp("thinking")
    base = tiny.checkpoint("llama", root / "base")
    adapter = tiny.write_adapter(base, root / "adapter", fork_layer=2, std=0.15, beta=1.0)
    marks = {"reasoning_start_str": START, "reasoning_end_str": END}
    reasoning_unguided = pad(base, adapter, {"reasoning": "unguided"}, reasoning_config=marks)
    unguided = [greedy(prompt, LENGTH) for prompt in PROMPTS]
    guided = [greedy(prompt, LENGTH, {"pad_weights": "helpful=1"}) for prompt in PROMPTS]
    jobs = [
        {"llm": plain(base), "requests": unguided},
        {"llm": pad(base, adapter), "requests": guided},
        {"llm": reasoning_unguided, "requests": guided},
    ]
    return engines(jobs, V2_ENV)


def test_reasoning_is_the_bases_and_the_answer_behind_it_is_guided(runs):
    plain, guided, reasoning_unguided = map(tokens, runs)
    assert all(one != other for one, other in zip(plain, guided, strict=True))
    assert reasoning_unguided == [plain[0], *guided[1:]]
    assert [one["pad"]["unguided_tokens"] for one in runs[2]["outputs"]] == [0, 0, 0]
