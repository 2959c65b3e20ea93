"""Layers whose rows are independent are forked; one scale for a whole batch is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("vllm")

from quantized_copies import FP8, rounded

from pad_vllm.engines.shared import model_fork
from pad_vllm.engines.shared.lm_head_rows import ForkError
from pad_vllm.engines.shared.row_independence_check import require_row_independence
from pad_vllm.vllm_api.quantization import is_quantized
from pad_vllm.vllm_api.vllm_names import UnquantizedLinearMethod

IN, OUT = 64, 96


class QuantMethod:
    """Stands in for a quantisation method of vLLM's."""


class RoundingLayer(nn.Linear):
    """Rounds its input by one scale a row, or one a batch; returns what vLLM's layers return."""

    input_size = IN
    params_dtype = torch.float32

    def __init__(self, eight_bits=None, dim=-1, bias=False):
        super().__init__(IN, OUT, bias)
        self.quant_method = QuantMethod()
        self.rounding = eight_bits, dim

    def forward(self, x):
        eight_bits, dim = self.rounding
        if eight_bits is not None:
            values, scale = rounded(x.float(), eight_bits, dim)
            x = (values * scale).to(x.dtype)
        return super().forward(x), None


def check(layer, dtype=torch.float32):
    require_row_independence(layer.to(dtype), "o_proj of layer 7", dtype, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eight_bits", [None, torch.int8, FP8])
@pytest.mark.parametrize("bias", [False, True])
def test_independent_rows_are_accepted_in_any_type(eight_bits, dtype, bias):
    check(RoundingLayer(eight_bits, bias=bias), dtype)


def test_a_layer_that_splits_its_inputs_is_checked_by_its_own_part_of_them():
    layer = RoundingLayer(torch.int8)
    layer.input_size, layer.input_size_per_partition = 2 * IN, IN
    check(layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eight_bits", [torch.int8, FP8])
def test_one_scale_for_a_batch_is_refused_naming_layer_method_and_way_out(eight_bits, dtype):
    with pytest.raises(ForkError) as caught:
        check(RoundingLayer(eight_bits, dim=None), dtype)
    message = str(caught.value)
    assert "o_proj of layer 7 quantises a whole batch by one scale (QuantMethod)" in message
    assert "scaled per token" in message
    assert "heads only" in message


def test_dummy_weights_that_give_nothing_are_accepted():
    layer = RoundingLayer(torch.int8)
    layer.weight.data.zero_()
    check(layer)


class Decoder:
    """As much of a decoder layer as its linear layers."""

    def __init__(self, **rounding):
        names = {"self_attn": ("qkv_proj", "o_proj"), "mlp": ("gate_up_proj", "down_proj")}
        for parent, children in names.items():
            made = {name: RoundingLayer(torch.int8, rounding.get(name, -1)) for name in children}
            setattr(self, parent, SimpleNamespace(**made))


WITHOUT_LORA = SimpleNamespace(lora=SimpleNamespace(weights={}))


def test_a_fork_checks_every_quantised_layer_also_those_without_a_lora():
    model_fork._add_layer_lora(Decoder(), 5, WITHOUT_LORA, torch.device("cpu"))
    for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"):
        with pytest.raises(ForkError, match=f"{name} of layer 5 quantises a whole batch"):
            model_fork._add_layer_lora(
                Decoder(**{name: None}), 5, WITHOUT_LORA, torch.device("cpu")
            )


def test_a_layer_that_gives_no_numbers_is_refused():
    layer = RoundingLayer()
    layer.weight.data.fill_(torch.nan)
    with pytest.raises(ForkError):
        check(layer)


def test_a_layer_is_quantised_where_vllm_computes_with_more_than_its_weight():
    layer = RoundingLayer()
    assert is_quantized(layer)
    layer.quant_method = UnquantizedLinearMethod()
    assert not is_quantized(layer)
    assert not is_quantized(nn.Linear(2, 2))
