"""Linear layers whose weights are packed for oneDNN, where this PyTorch has the operators."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pad_vllm.engines.reward_model import packed_cpu_linear


def layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4, bias=False))


def test_packed_layers_say_what_plain_ones_say():
    plain, packed = layers(), layers()
    packed_cpu_linear.pack_linears(packed)
    x = torch.randn(5, 8)
    torch.testing.assert_close(packed(x), plain(x))


@pytest.mark.parametrize("known", ["_linear_pointwise", "_reorder_linear_weight"])
def test_without_both_operators_the_layers_stay_plain(monkeypatch, known):
    monkeypatch.setattr(packed_cpu_linear, "_ONEDNN", SimpleNamespace(**{known: None}))
    model = layers()
    packed_cpu_linear.pack_linears(model)
    assert [type(layer) for layer in model] == [torch.nn.Linear] * 2


def test_bfloat16_stays_plain_on_a_processor_whose_onednn_cannot_multiply_it(monkeypatch):
    def refuses(*_given):
        raise RuntimeError("bf16 path needs the cpu support")

    onednn = {"_linear_pointwise": refuses, "_reorder_linear_weight": refuses}
    onednn["_is_mkldnn_bf16_supported"] = lambda: False
    monkeypatch.setattr(packed_cpu_linear, "_ONEDNN", SimpleNamespace(**onednn))
    model = layers().bfloat16()
    packed_cpu_linear.pack_linears(model)
    assert [type(layer) for layer in model] == [torch.nn.Linear] * 2


def test_layers_in_bfloat16_say_on_every_processor_what_plain_ones_say():
    plain, packed = layers().bfloat16(), layers().bfloat16()
    packed_cpu_linear.pack_linears(packed)
    x = torch.randn(5, 8).bfloat16()
    torch.testing.assert_close(packed(x), plain(x))
