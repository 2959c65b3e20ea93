"""From two instructions to guided answers, on another family: Gemma-3-270m, trained on a slice and served."""

from __future__ import annotations

import subprocess
import sys

import pytest
from engine_processes import engines, pad
from mixed_requests import PROMPTS, greedy, tokens
from pytorch_twin import Twin

from pad_vllm.text.chat_template import chat_token_ids, load_chat_tokenizer

pytestmark = [pytest.mark.engine, pytest.mark.exhaustive]  # a minute of drawing and training

TEMPLATE = (
    "<bos>{% for turn in messages %}{% if turn.role == 'user' %}Question: {{ turn.content }}\n"
    "Answer:{% endif %}{% endfor %}"
)
SENTENCES = {
    "friendly": "Answer in a warm, friendly and casual tone.",
    "brief": "Answer in one short sentence.",
}


def test_gemma_learns_two_instructions_and_serves_them(gemma3, tmp_path):
    template, prompts, out = (tmp_path / n for n in ("qa.jinja", "prompts.txt", "distilled"))
    template.write_text(TEMPLATE)
    asked = [
        f"What should I know about {thing}?" for thing in ("dogs", "tea", "rain", "jazz", "chess")
    ]
    asked += [f"How do I learn to {what}?" for what in ("swim", "cook", "sing", "draw", "drive")]
    prompts.write_text("\n".join(asked))
    command = [sys.executable, "-m", "pad_vllm", "train", str(gemma3), "--teacher", "prompt"]
    command += [x for n, said in SENTENCES.items() for x in ("--dimension", f"{n}={said}")]
    command += [
        "--prompts",
        str(prompts),
        "--answers",
        "10",
        "--max-response",
        "24",
        "--epochs",
        "1",
    ]
    command += ["--validation", "0.2", "--held-out", "0.2", "--chat-template", str(template)]
    command += ["--cache", str(tmp_path / "cache"), "--out", str(out)]
    subprocess.run(command, check=True)
    tokenizer = load_chat_tokenizer(gemma3, "gemma3-270m", TEMPLATE)
    chats = [chat_token_ids(tokenizer, [{"role": "user", "content": text}]) for text in PROMPTS[:4]]
    ways = [{"pad_weights": w} for w in ("friendly=1", "brief=-1", "friendly=0.5,brief=1")]
    requests = [greedy(chat, 16, way) for chat in chats for way in [*ways, None]]
    (result,) = engines([{"llm": pad(gemma3, out), "requests": requests, "record": True}])
    found = Twin(gemma3, out).compare(requests, result)
    print(f"\ngemma-3-270m, distilled: {found}")
    assert found.differences == []
    assert found.reward_error < 1e-3
    *guided, plain = (tokens(result)[place :: len(ways) + 1] for place in range(len(ways) + 1))
    assert all(said != plain for said in guided)
