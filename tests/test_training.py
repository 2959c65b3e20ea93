"""The trainer on a tiny random model: objective, cache, a planted preference, the command."""

from __future__ import annotations

import json
import random

import pytest
import tiny
import torch

from pad_vllm.adapter import load
from pad_vllm.persrm import PersRM
from pad_vllm.training import cache, data, loss, train, trainer
from pad_vllm.training.preferences import draw

DIMENSIONS = ("positive", "brief")


def write_samples(path, prompts=24):
    """Cheerful short answers against gloomy long ones, as bytes of the tiny tokenizer."""
    rng, tokenizer = random.Random(0), tiny.tokenizer()
    with path.open("w") as file:
        for number in range(prompts):
            texts = {
                " ".join(rng.choices(["good", "love", "nice"], k=3)) + ".",
                " ".join(rng.choices(["bad", "hate", "awful"], k=7)) + ".",
            }
            responses = [
                {"text": text, "token_ids": tokenizer(text, add_special_tokens=False).input_ids}
                for text in sorted(texts)
            ]
            file.write(json.dumps({"prompt": f"question {number}", "responses": responses}) + "\n")
    return path


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("samples") / "samples.jsonl")


@pytest.fixture
def groups(samples):
    return data.standardise(data.load_groups(samples, tiny.tokenizer(), DIMENSIONS))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PersRM(
        tiny.model("llama"), fork_layer=2, dimensions=DIMENSIONS, lora_rank=4, head_rank=4
    )


def test_log_ratios_are_zero_without_reward_and_normalised_with_it():
    phi, z = torch.randn(5, 7, 2), torch.randn(5, 7)
    w = torch.randn(5, 3, 2)
    chosen = torch.randint(7, (5,))
    assert loss.log_ratios(phi, z, 0 * w, chosen).abs().max() < 1e-6
    everything = torch.stack(
        [loss.log_ratios(phi, z, w, torch.full((5,), i)) for i in range(7)], dim=-1
    )
    policy = (everything + z.log_softmax(-1).unsqueeze(1)).exp().sum(-1)
    assert torch.allclose(policy, torch.ones(5, 3), atol=1e-5)


def test_pair_loss_is_least_where_ratios_follow_the_margins():
    scores, w = torch.tensor([[1.0], [0.0], [-1.0]]), torch.ones(1, 1)
    margins = loss.pair_margins(scores, w)
    follows, _ = loss.pair_loss(scores * 10, margins, 0.1, 1.0)
    nothing, pairs = loss.pair_loss(scores * 0, margins, 0.1, 1.0)
    against, _ = loss.pair_loss(-scores * 10, margins, 0.1, 1.0)
    assert follows < nothing < against
    assert pairs == 6


def test_branch_loss_is_the_pair_loss_of_two_responses_of_one_token():
    phi, w, scores = torch.randn(1, 2, 1), torch.ones(1, 1, 1), torch.tensor([[[1.0], [0.0]]])
    branch, pairs = loss.branch_loss(phi, w, scores, 0.5, 1.0)
    margins = loss.pair_margins(scores[0], w[0])
    whole, _ = loss.pair_loss(phi[0], margins, 0.5, 1.0)
    assert pairs == 2
    assert branch.item() == pytest.approx(whole.item())


def test_sampled_preferences_have_a_largest_weight_of_one():
    w = draw(500, 3, torch.Generator().manual_seed(0))
    assert torch.allclose(w.abs().amax(-1), torch.ones(500))
    alone = (w != 0).sum(-1) == 1
    assert 0.4 < alone.float().mean() < 0.6
    assert (w < 0).any()


def test_a_prompt_never_changes_sides(groups):
    first, second = data.split(groups, 0.3), data.split(list(reversed(groups)), 0.3)
    assert {g.prompt for g in first[1]} == {g.prompt for g in second[1]}
    assert first[0]
    assert first[1]


def test_cached_responses_hold_what_the_model_says(model, groups):
    group = groups[0]
    response = cache.build(model, [group], 5)[0][0]
    ids = group.prompt_ids + group.response_ids[0]
    h_B, _ = model.hidden_twice(torch.tensor([ids[:-1]]))
    count = len(group.response_ids[0])
    assert torch.allclose(response.h_B, h_B[0, -count:], atol=1e-5)
    taken = response.ids.gather(-1, response.chosen.unsqueeze(-1)).squeeze(-1)
    assert taken.tolist() == group.response_ids[0]


def test_training_learns_a_planted_preference_and_its_opposite(model, groups):
    recipe = trainer.Recipe(
        epochs=2, head_epochs=1, lora_lr=5e-3, head_lr=2e-2, candidates=8, branch_share=0
    )
    fitted, held = data.split(groups, 0.3)
    train.fit(model, cache.build(model, fitted, 8), fitted, recipe, lambda _: [0.0, 0.0])
    unseen = cache.build(model, held, 8)
    examples = [trainer.Example(r, g.scores) for r, g in zip(unseen, held, strict=True)]
    found = trainer.accuracy(model, examples, recipe)
    assert found["positive"] > 0.9
    assert found["brief"] > 0.9
    assert found["mixes"] > 0.8


def test_the_command_writes_an_adapter_that_loads_and_steers_the_twin(samples, tmp_path):
    base = tiny.checkpoint("llama", tmp_path / "base")
    arguments = f"{base} --samples {samples} --out {tmp_path / 'out'} --fork-layer 2".split()
    arguments += ["--dimensions", ",".join(DIMENSIONS), "--lora-rank", "4", "--head-rank", "4"]
    arguments += ["--candidates", "8", "--top-k", "8", "--branch-share", "0.2"]
    train.main(arguments)
    adapter = load(tmp_path / "out")
    assert adapter.config.dimensions == DIMENSIONS
    assert set(adapter.config.training["held_out_pair_accuracy"]) == {*DIMENSIONS, "mixes"}
    assert "held-out pairs" in (tmp_path / "out" / "README.md").read_text()
    assert any(b.abs().max() > 0 for _, b in adapter.lora.weights.values())
