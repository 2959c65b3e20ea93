"""The LoRA on the second half of a layer's rows, whatever the layer computes with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("vllm")

from vllm.model_executor.layers.fusion.quant_activation import get_input_quant_key

from pad_vllm.engines import reward_lora

IN, OUT, T = 8, 6, 3


class Packed(nn.Module):
    """A layer of vLLM's that has no weight to look at any more, as oneDNN leaves it."""

    def __init__(self):
        super().__init__()
        self._hidden = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0))

    def forward(self, x):
        return nn.functional.linear(x, self._hidden), None


def forked(layer):
    A, B = torch.randn(2, IN), torch.randn(OUT, 2)
    reward_lora.add_reward_lora(layer, A, B, torch.float32, torch.device("cpu"))
    return layer, A, B


def test_the_second_half_gets_the_lora_and_the_first_is_left_alone():
    plain = Packed()
    layer, A, B = forked(Packed())
    x = torch.randn(2 * T, IN)
    before, after = plain(x)[0], layer(x)[0]
    assert torch.equal(after[:T], before[:T])
    torch.testing.assert_close(after[T:], before[T:] + x[T:] @ A.T @ B.T)
    assert list(layer.parameters()) == []


def test_no_activation_hands_over_its_output_quantised():
    layer = Packed()
    layer._input_quant_key = "a key of vLLM's"
    assert get_input_quant_key(layer) == "a key of vLLM's"
    assert get_input_quant_key(forked(layer)[0]) is None
