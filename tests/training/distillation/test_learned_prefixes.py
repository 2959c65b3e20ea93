"""Prefixes trained on a teacher that a prefix can be: learned, kept, resumed, saved and refused."""

from __future__ import annotations

import json

import pytest
import tiny
import tiny_examples
import torch

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.instruction import InstructionTokens
from pad_vllm.instruction_prefix import InstructedBackbone, InstructionPrefix
from pad_vllm.training.distillation import learned_prefix_stage, prefix_training
from pad_vllm.training.distillation.prefix_training import (
    PrefixText,
    PrefixTexts,
    sentence_prefix,
    train_prefix,
)
from pad_vllm.training.objective.candidate_rewards import subtract_base_mean
from pad_vllm.training.settings import DistillationSettings, PrefixSettings, Settings
from pad_vllm.training.training_run import TrainingRun

pytestmark = pytest.mark.usefixtures("one_thread")

FORK, P, K = 1, 16, 8
PREFIX = {"tokens": P, "fork_layer": FORK, "epochs": 2}


@pytest.fixture(scope="module")
def backbone():
    model = tiny.model("llama")
    model.requires_grad_(False)
    return InstructedBackbone(model, FORK)


def embeddings(backbone):
    weight = backbone.backbone.lm_head.weight
    return lambda ids: weight[ids].float()


@torch.no_grad()
def text_of(backbone, prompt, answer):
    """A text with its states and candidates."""
    ids = torch.tensor([[*prompt, *answer][:-1]])
    h_B = backbone.base_states(backbone.states_below_fork(ids))[0, len(prompt) - 1 :]
    z_B, candidates = (h_B @ backbone.backbone.lm_head.weight.T).topk(K)
    return PrefixText(ids[0].tolist(), h_B, candidates, z_B)


def random_texts(backbone, count, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def ids(low, high):
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(3, 333, (length,), generator=generator).tolist()

    return [text_of(backbone, ids(3, 9), ids(2, 12)) for _ in range(count)]


def rewards_under(backbone, prefix, texts):
    """[n, K] of each text, centred."""
    made, found = PrefixTexts(backbone, embeddings(backbone), texts), {}
    for batch in made.batches:
        for place, text, rewards in zip(
            batch.places, batch.texts, made.rewards(batch, prefix), strict=True
        ):
            found[place] = subtract_base_mean(rewards, text.z_B)[..., 0]
    return [found[place] for place in range(len(texts))]


def test_rewards_of_a_batch_are_those_of_each_text_alone(backbone):
    texts = random_texts(backbone, 11)
    prefix = sentence_prefix(backbone, InstructionTokens((), (5, 9, 11)), P)
    together = rewards_under(backbone, prefix, texts)
    for text, rewards in zip(texts, together, strict=True):
        forked = backbone.states_below_fork(torch.tensor([text.token_ids]))
        h_T = backbone.instructed_states(forked, prefix)[0, -len(text.h_B) :]
        own = ((h_T - text.h_B).unsqueeze(1) * embeddings(backbone)(text.ids)).sum(-1)
        expected = subtract_base_mean(own.unsqueeze(-1), text.z_B)[..., 0]
        torch.testing.assert_close(rewards, expected, rtol=1e-4, atol=1e-4)


def test_a_teacher_that_is_a_prefix_is_explained_by_itself_and_learned_from_another(backbone):
    train, held_out = random_texts(backbone, 48), random_texts(backbone, 12, seed=1)
    teacher = sentence_prefix(backbone, InstructionTokens((), (40, 41, 42, 43)), P)
    start = sentence_prefix(backbone, InstructionTokens((), (200, 201)), P)
    wanted = rewards_under(backbone, teacher, held_out)
    texts = PrefixTexts(backbone, embeddings(backbone), held_out)
    assert texts.explained_share(teacher, wanted) == pytest.approx(1.0, abs=1e-4)
    shares = []
    trained = train_prefix(
        PrefixTexts(backbone, embeddings(backbone), train),
        rewards_under(backbone, teacher, train),
        start,
        PrefixSettings(tokens=P, epochs=20, lr=0.1),
        seed=0,
        log=lambda epoch, share: shares.append((epoch, share)),
    )
    assert [epoch for epoch, _ in shares] == list(range(1, 21))
    assert shares[-1][1] < 0.6 * shares[0][1]
    before, after = (texts.explained_share(prefix, wanted) for prefix in (start, trained))
    assert after > max(0.5, before + 0.3)
    assert not any(key.requires_grad for key in trained.keys)


@pytest.mark.parametrize("length", [1, 3, 9, 20])
def test_a_sentence_fills_the_virtual_tokens_or_is_cut(backbone, length):
    tokens = InstructionTokens((7,), tuple(range(20, 20 + length)))
    prefix = sentence_prefix(backbone, tokens, P)
    assert {key.shape[1] for key in prefix.keys} == {P}
    whole = backbone.read_instruction(tokens)
    own = [place % length for place in range(P)]
    assert torch.equal(prefix.keys[0], whole.keys[0][:, own])


def started(root, out, **teacher):
    settings = tiny_examples.settings(
        root, out, fork_layer=None, teacher={"prefix": PREFIX, **teacher}, recipe={"epochs": 1}
    )
    run = TrainingRun(settings, root / "cache", "pad-vllm train ...")
    tiny_examples.answer(root, out, run.method.prompts.answered)
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("prefixes")


@pytest.fixture(scope="module")
def adapter(root):
    return started(root, "whole").train()


def test_a_run_saves_an_adapter_with_a_prefix_of_each_dimension(root, adapter):
    loaded = load_adapter(root / "whole")
    assert loaded.digest == adapter.digest
    assert loaded.config.prefixes.fork_layer == FORK
    assert set(loaded.prefixes) == {"warm", "brief"}
    assert all(prefix.num_tokens == P for prefix in loaded.prefixes.values())
    assert loaded.config.heads_only
    for row in loaded.config.training["taught"]:
        assert row["prefix"] > row["sentence"]
        assert "prefix_first" in row
    assert "prefix" in (root / "whole" / "README.md").read_text()
    assert load_adapter(root / "whole.run" / "bias").config.prefixes is None


def test_a_run_that_is_killed_between_two_prefixes_ends_with_the_same_adapter(
    root, adapter, monkeypatch
):
    trained = []

    def train_once(*args, **kwargs):
        if trained:
            raise KeyboardInterrupt
        trained.append(1)
        return train_prefix(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(learned_prefix_stage, "train_prefix", train_once)
        with pytest.raises(KeyboardInterrupt):
            started(root, "killed").train()
    again = started(root, "killed").train()
    assert {n: p.digest for n, p in again.prefixes.items()} == {
        n: p.digest for n, p in adapter.prefixes.items()
    }


def test_beside_a_trunk_they_are_refused(root):
    settings = tiny_examples.settings(root, "trunk", fork_layer=2, teacher={"prefix": PREFIX})
    with pytest.raises(ValueError, match="learned prefixes stand beside heads only.*fork-layer 2"):
        TrainingRun(settings, root / "cache", "pad-vllm train ...")


def test_settings_without_them_are_those_of_earlier_releases(root):
    plain = tiny_examples.settings(root)
    assert "prefix" not in plain.as_dict()["teacher"]
    asked = tiny_examples.settings(root, teacher={"prefix": PREFIX})
    assert asked.digest() != plain.digest()
    assert Settings.from_dict(json.loads(json.dumps(asked.as_dict()))) == asked
    assert isinstance(asked.teacher, DistillationSettings)
    assert asked.teacher.prefix == PrefixSettings(**PREFIX)
    assert prefix_training.PrefixSettings is PrefixSettings
    assert InstructionPrefix._fields == ("keys", "values")
