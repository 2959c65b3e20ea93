"""`pad-vllm explain` on a tiny model: rewards, the base's own choice, and the colours."""

from __future__ import annotations

import pytest
import tiny
import torch

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.cli.app import app
from pad_vllm.persrm import PersRM
from pad_vllm.steering import token_explanation
from pad_vllm.steering.guided_answers import DrawnAnswer
from pad_vllm.text.chat_template import chat_token_ids, load_chat_tokenizer


@pytest.fixture(scope="module")
def base_and_adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained")
    base = tiny.checkpoint("llama", folder / "base")
    return base, tiny.write_adapter(base, folder / "adapter", fork_layer=1, std=0.1)


@pytest.fixture
def model(base_and_adapter):
    from transformers import AutoModelForCausalLM

    base, adapter = base_and_adapter
    return PersRM.from_adapter(AutoModelForCausalLM.from_pretrained(base), load_adapter(adapter))


@torch.no_grad()
def test_a_tokens_reward_is_relative_to_the_mean_of_the_bases_candidates(base_and_adapter, model):
    tokenizer = load_chat_tokenizer(base_and_adapter[0], "base", None)
    prompt, answer = [3, 4, 5], [6, 7, 8, 9]
    w = torch.linspace(1, 2, len(model.dimensions))
    explained = token_explanation.explain_tokens(model, tokenizer, prompt, answer, w, 5)
    h_B, h_T = model.hidden_twice(torch.tensor([prompt + answer]))
    for index, token in enumerate(explained):
        h, t = (states[0, len(prompt) - 1 + index] for states in (h_B, h_T))
        z, ids = model.base_logits(h).topk(5)
        rewards = model.rewards(h, t, torch.cat([ids, torch.tensor([answer[index]])]), w)
        mean = (z.softmax(-1) * rewards[:-1]).sum()
        assert token["reward"] == pytest.approx(float(rewards[-1] - mean), abs=1e-4)
        assert token["base"] == tokenizer.decode([int(ids[0])])
        assert token["changed"] == (int(ids[0]) != answer[index])
    assert "".join(token["token"] for token in explained) == tokenizer.decode(answer)
    assert token_explanation.explain_tokens(model, tokenizer, prompt, [], w, 5) == []


def test_an_answer_is_read_or_drawn_and_shown_and_written(base_and_adapter, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    base, adapter = map(str, base_and_adapter)
    names, batches = load_adapter(adapter).config.dimensions, []

    def answers(batch):
        batches.append(batch)
        tokenizer = load_chat_tokenizer(base, "base", None)
        return [
            [
                [
                    DrawnAnswer(
                        "drawn",
                        tuple(chat_token_ids(tokenizer, [{"role": "user", "content": "x"}])),
                    )
                ]
            ]
        ]

    monkeypatch.setattr(token_explanation, "draw_answers", answers)
    arguments = ["explain", adapter, "Hello", "--base", base, "--weights", f"{names[0]}=-1"]
    page = tmp_path / "page.html"
    result = CliRunner().invoke(app, [*arguments, "--answer", "a b c", "--html", str(page)])
    assert result.exit_code == 0, result.output
    assert "not the base's first choice" in result.output
    assert not batches
    assert "background-color" in page.read_text()

    result = CliRunner().invoke(app, [*arguments, "--beta", "3"])
    assert result.exit_code == 0, result.output
    (condition,) = batches[0].conditions
    assert (condition.weights[names[0]], condition.beta) == (-1.0, 3.0)

    result = CliRunner().invoke(app, [*arguments[:-1], "kindness=1"])
    assert result.exit_code == 1
    assert "kindness" in result.output
