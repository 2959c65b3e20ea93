"""A fork at the top: no layer is touched, and a model whose logits are not lm_head h is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("vllm")

from benchmarks.common.random_adapter import random_adapter
from pad_vllm import guidance
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.engines.override_methods import mix_in
from pad_vllm.engines.reward_engine import StepCandidates
from pad_vllm.engines.shared.lm_head_rows import ForkError
from pad_vllm.engines.shared.model_fork import ForkedModel, fork_model

H, V, LAYERS = 16, 50, 3
BACKBONE = Backbone("tiny", ("SomethingForCausalLM",), H, LAYERS, V, None)


class Something(nn.Module):
    """As much of a vLLM model as heads need: nothing is named as in a model that can be forked."""

    def __init__(self, logits=lambda z: z, *, bias=False, norm=False, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(H, H) for _ in range(LAYERS))
        self.lm_head = nn.Linear(H, V + 14, bias=bias)  # vLLM pads it
        self.norm = nn.RMSNorm(H) if norm else nn.Identity()
        self.logits = logits
        self.to(dtype)

    def forward(self, x):
        for block in self.blocks:
            x = block(x).tanh()
        return x

    def compute_logits(self, hidden_states):
        return self.logits(self.lm_head(self.norm(hidden_states)))[:, :V]


def heads(constants=True, gates=False):
    return random_adapter(
        BACKBONE,
        LAYERS,
        ("a", "b"),
        4,
        2,
        shapes={},
        std=0.5,
        seed=0,
        constants=constants,
        gates=gates,
    )


@pytest.mark.parametrize(("constants", "gates"), [(False, False), (True, False), (True, True)])
def test_heads_read_the_models_own_hidden_state_and_leave_its_layers_alone(constants, gates):
    model, plain, adapter = Something(), Something(), heads(constants, gates)
    classes = [type(module) for module in model.modules()][1:]
    names = [name for name, _ in model.named_parameters()]
    engine = fork_model(model, adapter, None)
    assert [type(module) for module in model.modules()][1:] == classes
    assert [name for name, _ in model.named_parameters()] == names
    x, rows = torch.randn(5, H), torch.tensor([1, 4])
    w, ids = torch.tensor([[1.0, -0.5], [0.0, 2.0]]), torch.tensor([[3, 7, 9], [1, 2, 3]])
    hidden = model(x)
    assert torch.equal(hidden, plain(x))
    assert torch.equal(model.compute_logits(hidden), plain.compute_logits(hidden))
    found = engine.rewards(StepCandidates(num_logits_rows=5, rows=rows, ids=ids, w=w, requests=[]))
    h = hidden[rows]
    expected = guidance.rewards(
        guidance.reward_direction(h, h, w, *adapter.heads), model.lm_head.weight[ids]
    )
    torch.testing.assert_close(found, expected)
    buffers = {name for name, _ in model.named_buffers() if name.startswith("pad_head_")}
    letters = "AB" + "C" * constants + "G" * gates
    assert buffers == {f"pad_head_{letter}" for letter in letters}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_plain_head_in_any_type_is_accepted_also_with_a_bias(dtype, bias):
    fork_model(Something(bias=bias, dtype=dtype), heads(), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "strange",
    [
        {"logits": lambda z: 30 * torch.tanh(z / 30)},
        {"logits": lambda z: z * 0.0625},
        {"logits": lambda z: z / 1.1},
        {"logits": lambda z: z * torch.nan},
        {"norm": True},
    ],
    ids=["soft cap", "scale", "small scale", "nan", "norm"],
)
def test_logits_that_are_not_the_head_times_the_hidden_state_are_refused(strange, dtype):
    with pytest.raises(ForkError) as caught:
        fork_model(Something(**strange, dtype=dtype), heads(), None)
    message = str(caught.value)
    assert "logits of the served Something are not lm_head times the hidden state" in message
    assert "they differ by " in message
    assert "engine 'resident' or 'ray'" in message


class Wrapper(nn.Module):
    """As vLLM keeps a model that reads images too: its lm_head is in its language model."""

    def __init__(self, language_model):
        super().__init__()
        self.language_model = language_model

    def get_language_model(self):
        if self.language_model is None:
            raise NotImplementedError
        return self.language_model

    def compute_logits(self, hidden_states):
        return self.language_model.compute_logits(hidden_states)


def test_the_head_of_a_wrapped_language_model_is_found_and_its_logits_checked():
    model, inner = Wrapper(Something()), Something(lambda z: z * 2)
    engine = fork_model(model, heads(), None)
    h, ids, w = torch.randn(2, H), torch.tensor([[1, 2], [3, 4]]), torch.eye(2)
    assert torch.equal(model.compute_logits(h), Something().compute_logits(h))
    found = engine.rewards(
        StepCandidates(num_logits_rows=2, rows=torch.arange(2), ids=ids, w=w, requests=[])
    )
    e = model.language_model.lm_head.weight[ids]
    d_w = guidance.reward_direction(h, h, w, *heads().heads)
    torch.testing.assert_close(found, guidance.rewards(d_w, e))
    with pytest.raises(ForkError, match="logits of the served Wrapper are not lm_head times"):
        fork_model(Wrapper(inner), heads(), None)


def test_a_wrapper_without_a_language_model_or_head_is_refused():
    headless = Something()
    headless.lm_head = None
    for language_model in (None, headless):
        with pytest.raises(ForkError, match="lm_head is missing, .*Wrapper and its language model"):
            fork_model(Wrapper(language_model), heads(), None)


def test_a_missing_or_other_head_is_refused():
    model = Something()
    model.lm_head = None
    with pytest.raises(ForkError, match="lm_head is missing, quantised or not a plain matrix"):
        fork_model(model, heads(), None)
    model = Something()
    model.lm_head = nn.Linear(H, V - 1)
    with pytest.raises(ForkError, match=r"lm_head is \[49, 16\]; the adapter needs \[50, 16\]"):
        fork_model(model, heads(), None)


class TwoStreams(nn.Module):
    """As much of a forked model as returns rows: its inner layers' too, below and above the fork."""

    def __init__(self, below, above):
        super().__init__()
        self.inner = [below, above]

    def forward(self, hidden):
        return hidden if self.inner is None else (hidden, self.inner)


def test_a_drafter_reads_the_bases_stream_of_inner_layers_below_and_above_the_fork():
    base, reward, below = torch.randn(5, H), torch.randn(5, H), torch.randn(5, H)
    model = TwoStreams(below, torch.cat((base, reward)))
    mix_in(model, ForkedModel)
    streams, (first, second) = model(torch.cat((base, reward)))
    assert torch.equal(streams, torch.cat((base, reward), dim=-1))
    assert torch.equal(first, below)
    assert torch.equal(second, base)
    model.inner = None
    assert torch.equal(model(torch.cat((base, reward))), streams)
