"""Linear layers whose weights are packed for oneDNN, where this PyTorch has the operators."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pad_vllm.engines.reward_model import cpu


def layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4, bias=False))


def test_packed_layers_say_what_plain_ones_say():
    plain, packed = layers(), layers()
    cpu.pack_linears(packed)
    x = torch.randn(5, 8)
    torch.testing.assert_close(packed(x), plain(x))


@pytest.mark.parametrize("known", ["_linear_pointwise", "_reorder_linear_weight"])
def test_without_both_operators_the_layers_stay_plain(monkeypatch, known):
    monkeypatch.setattr(cpu, "_ONEDNN", SimpleNamespace(**{known: None}))
    model = layers()
    cpu.pack_linears(model)
    assert [type(layer) for layer in model] == [torch.nn.Linear] * 2
