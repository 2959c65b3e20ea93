"""The PersRM: the forked forward is its slow twin's, PEFT's own, and what comes back from disk."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch

from pad_vllm import guidance
from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import load_adapter, save_adapter
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.manifest import FORMAT_1, AdapterConfig
from pad_vllm.adapter.peft_lora import LoRA
from pad_vllm.instruction_prefix import InstructedBackbone
from pad_vllm.persrm import PersRM, load_causal_lm

DIMENSIONS = ("helpful", "humor")
IDS = torch.randint(3, 259, (2, 3 * tiny.WINDOW), generator=torch.Generator().manual_seed(3))
EXACT = {"rtol": 1e-5, "atol": 2e-5}
CASES = [
    (family, fork)
    for family in tiny.FAMILIES
    for fork in ((0, 3, 5) if family == "gemma3" else (0, 2, 3))
]


pytestmark = pytest.mark.usefixtures("one_thread")


def persrm(family, fork, std=0.1):
    return tiny.persrm(family, fork, DIMENSIONS, std)


@pytest.mark.parametrize(("family", "fork"), CASES)
def test_the_forked_forward_gives_what_two_whole_forwards_give(family, fork):
    model = persrm(family, fork)
    with torch.no_grad():
        fast, slow = model.hidden(IDS), model.hidden_twice(IDS)
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    assert (slow[0] - slow[1]).abs().max() > 0.1


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_with_the_adapter_off_it_is_the_plain_backbone(family):
    plain = tiny.model(family)
    model = persrm(family, 2)
    with torch.no_grad():
        h_B, _ = model.hidden(IDS)
        expected = plain(input_ids=IDS).logits
    torch.testing.assert_close(model.base_logits(h_B), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_an_adapter_on_disk_comes_back_as_the_same_model_here_and_in_peft(family, tmp_path):
    from peft import PeftModel

    base = tiny.checkpoint(family, tmp_path / "base")
    folder = tiny.write_adapter(base, tmp_path / "adapter", fork_layer=3, std=0.1)
    loaded = load_adapter(folder)
    assert loaded.config.backbone == Backbone.from_checkpoint(base)
    model = PersRM.from_adapter(tiny.model(family), loaded)
    peft = PeftModel.from_pretrained(tiny.model(family), folder).eval()
    with torch.no_grad():
        _, h_T = model.hidden(IDS)
        theirs = peft.base_model.model.model(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(h_T, theirs, **EXACT)
    assert torch.equal(model.head_A, loaded.head_A)
    for key, pair in model.lora_weights().items():
        assert all(map(torch.equal, pair, loaded.lora.weights[key]))


def test_from_adapter_keeps_a_scaling_that_is_not_one(tmp_path):
    first = persrm("llama", 2)  # alpha 32 over rank 4
    lora = LoRA(4, 32.0, 8.0, {k: (a, b) for k, (a, b) in first.lora_weights().items()})
    base = tiny.checkpoint("llama", tmp_path / "base")
    config = AdapterConfig(
        format_version=FORMAT_1,
        backbone=Backbone.from_checkpoint(base),
        fork_layer=2,
        dimensions=DIMENSIONS,
        head_rank=16,
        beta=1.0,
        top_k=10,
    )
    kept = Adapter(config, lora, first.head_A.detach(), first.head_B.detach())
    save_adapter(kept, tmp_path / "adapter", "x")
    second = PersRM.from_adapter(tiny.model("llama"), load_adapter(tmp_path / "adapter"))
    with torch.no_grad():
        for ours, theirs in zip(first.hidden(IDS), second.hidden(IDS), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_rewards_are_the_weighted_features_of_the_candidates():
    model = persrm("llama", 2)
    w = torch.tensor([0.7, -1.3])
    with torch.no_grad():
        h_B, h_T = model.hidden(IDS)
        scores, ids = model.scores(h_B, h_T, w, 2.0, 5)
        reward = model.rewards(h_B, h_T, ids, w)
        phi = model.features(h_B, h_T, ids)
        z = model.base_logits(h_B).gather(-1, ids)
    torch.testing.assert_close(phi @ w, reward, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(z + 2.0 * reward, scores)


def test_padding_on_the_right_does_not_reach_the_real_positions():
    model = persrm("gemma3", 3)
    short = IDS[:, :20]
    padded = torch.cat((short, torch.full((2, 7), 2)), dim=1)
    with torch.no_grad():
        for ours, theirs in zip(model.hidden(short), model.hidden(padded), strict=True):
            torch.testing.assert_close(ours, theirs[:, :20], **EXACT)


def test_gradients_reach_lora_and_heads_and_nothing_else():
    model = persrm("llama", 2)
    h_B, h_T = model.hidden(IDS[:1, :8])
    model.rewards(h_B, h_T, IDS[:1, :8, None], torch.tensor([1.0, 2.0])).sum().backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {name for name in touched if "lora_" not in name} == {"head_A", "head_B"}
    assert len(touched) == 2 + 2 * len(model.lora_weights())


def test_a_new_reward_model_rewards_nothing():
    model = PersRM(tiny.model("llama"), fork_layer=2, dimensions=DIMENSIONS).eval()
    with torch.no_grad():
        h_B, h_T = model.hidden(IDS)
    reward = model.rewards(h_B, h_T, IDS[..., None], torch.tensor([1.0, 2.0]))
    assert reward.abs().max() < 1e-3


def test_a_fork_beyond_the_layers_is_refused():
    with pytest.raises(ValueError, match="fork_layer 5: this backbone accepts 0..4"):
        PersRM(tiny.model("llama"), fork_layer=5, dimensions=DIMENSIONS)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_at_the_top_both_hidden_states_are_the_plain_backbones_of_one_run(family):
    plain = tiny.model(family)
    layers = plain.config.num_hidden_layers
    model = tiny.persrm(family, layers, DIMENSIONS, constants=True)
    runs = []
    model.backbone.model.layers[0].register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        h_B, h_T = model.hidden(IDS)
        expected = plain.model(input_ids=IDS).last_hidden_state
    assert torch.equal(h_B, expected)
    assert h_T is h_B
    assert len(runs) == 1
    assert model.lora_weights() == {}


def test_heads_only_on_disk_come_back_on_an_architecture_that_is_not_forked(tmp_path):
    base = tiny.other_checkpoint("gpt2", tmp_path / "base")
    folder = tiny.write_adapter(base, tmp_path / "adapter", fork_layer=3, std=0.1, constants=True)
    loaded, plain = load_adapter(folder), tiny.other("gpt2")
    model, w = PersRM.from_adapter(tiny.other("gpt2"), loaded), torch.tensor([1.0, -0.5, 2.0])
    with torch.no_grad():
        h_B, h_T = model.hidden(IDS)
        z = plain(input_ids=IDS).logits
        rewards = model.rewards(h_B, h_T, IDS[..., None], w)
    torch.testing.assert_close(model.base_logits(h_B), z)
    A, B, C, _ = loaded.heads
    d_w = sum(w[i] * (h_B @ A[i].T @ B[i].T + C[i]) for i in range(3))
    e = plain.lm_head.weight[IDS]
    torch.testing.assert_close(rewards[..., 0], (e * d_w).sum(-1), rtol=1e-4, atol=1e-4)
    assert all(map(torch.equal, model.heads[:3], loaded.heads[:3]))
    assert model.head_G is None


@pytest.mark.parametrize("fork", [2, 4])
def test_gates_on_disk_come_back_and_weigh_every_row_of_a_head(tmp_path, fork):
    base = tiny.checkpoint("llama", tmp_path / "base")
    folder = tiny.write_adapter(base, tmp_path / "adapter", fork_layer=fork, std=0.1, gates=True)
    loaded = load_adapter(folder)
    model, w = PersRM.from_adapter(tiny.model("llama"), loaded), torch.tensor([1.0, -0.5, 2.0])
    with torch.no_grad():
        h_B, h_T = model.hidden(IDS)
        rewards = model.rewards(h_B, h_T, IDS[..., None], w)
        A, B, _, G = loaded.heads
        low_rank = [2 * (h_T @ G[i].T).sigmoid() * (h_T @ A[i].T) for i in range(3)]
        d_w = sum(w[i] * ((h_T - h_B) + low_rank[i] @ B[i].T) for i in range(3))
        expected = (model.embeddings(IDS) * d_w).sum(-1)
    torch.testing.assert_close(rewards[..., 0], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.head_G, G)


def test_new_gates_change_nothing_and_learn():
    model = PersRM(tiny.model("llama"), fork_layer=4, dimensions=DIMENSIONS, gates=True)
    torch.nn.init.normal_(model.head_B, std=0.1)
    with torch.no_grad():
        h_B, h_T = model.hidden(IDS)
    ids, w = IDS[..., None], torch.tensor([1.0, 2.0])
    rewards = model.rewards(h_B, h_T, ids, w)
    plain = guidance.reward_direction(h_B, h_T, w, model.head_A, model.head_B)
    assert torch.equal(rewards, guidance.rewards(plain, model.embeddings(ids)))
    rewards.square().sum().backward()
    assert model.head_G.grad.abs().min() > 0


def test_constants_stand_above_a_lower_fork_too(tmp_path):
    base = tiny.checkpoint("llama", tmp_path / "base")
    folder = tiny.write_adapter(base, tmp_path / "adapter", fork_layer=2, std=0.1, constants=True)
    loaded = load_adapter(folder)
    bare = PersRM.from_adapter(tiny.model("llama"), dataclasses.replace(loaded, head_C=None))
    model, w = PersRM.from_adapter(tiny.model("llama"), loaded), torch.tensor([1.0, -0.5, 2.0])
    with torch.no_grad():
        hidden = model.hidden(IDS)
        more = model.rewards(*hidden, IDS[..., None], w) - bare.rewards(*hidden, IDS[..., None], w)
        expected = model.embeddings(IDS) @ (w @ loaded.head_C)
    torch.testing.assert_close(more[..., 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", tiny.VISION_LANGUAGE)
def test_heads_on_a_model_that_reads_images_too(name, tmp_path):
    tiny.vision_language_model(name).save_pretrained(tmp_path)
    backbone = load_causal_lm(tmp_path, dtype=torch.float32)
    assert Backbone.from_checkpoint(tmp_path).num_layers == 4
    model = PersRM(backbone, fork_layer=4, dimensions=DIMENSIONS).eval()
    assert model.head_A.shape == (2, 16, 64)
    with torch.no_grad():
        h_B, h_T = model.hidden(IDS)
        expected = tiny.vision_language_model(name)(input_ids=IDS).logits
    assert torch.equal(h_B, h_T)
    torch.testing.assert_close(model.base_logits(h_B), expected, **EXACT)


def test_a_trunk_or_an_instruction_on_a_model_that_reads_images_too_is_refused():
    backbone = tiny.vision_language_model("gemma3")
    with pytest.raises(
        ValueError, match="fork_layer 3: Gemma3ForConditional.*: heads only, fork_layer 4"
    ):
        PersRM(backbone, fork_layer=3, dimensions=DIMENSIONS)
    with pytest.raises(
        ValueError, match="instruction from layer 3 up: Gemma3ForCond.*without a prefix"
    ):
        InstructedBackbone(backbone, 3)
