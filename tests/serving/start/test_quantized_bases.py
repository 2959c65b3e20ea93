"""Which quantised bases are forked, by the names of vLLM and of checkpoints."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from vllm.model_executor.layers.quantization import get_quantization_config

from pad_vllm.serving.start.quantized_bases import (
    ACCEPTED_UNTESTED_METHODS,
    TESTED_METHODS,
    require_forkable_method,
    stored_quant_method,
)


@pytest.mark.parametrize("name", ["", "compressed-tensors", "gptq", "awq", "auto_awq", "fp8"])
def test_methods_that_are_named_are_forked(name):
    require_forkable_method(name)


@pytest.mark.parametrize("name", ["torchao", "mxfp4", "a_method_of_tomorrow"])
def test_any_other_is_refused_with_those_that_are_accepted_and_the_way_out(name):
    with pytest.raises(ValueError, match=f"quantised by '{name}' yet; accepted are ") as caught:
        require_forkable_method(name)
    assert "compressed-tensors" in str(caught.value)
    assert "heads only" in str(caught.value)


@pytest.mark.parametrize("name", [*TESTED_METHODS, *ACCEPTED_UNTESTED_METHODS])
def test_the_names_are_those_of_this_vllm(name):
    made = get_quantization_config(name)
    assert (
        made.get_name(made) == name
        if name in {*TESTED_METHODS, "modelopt"}
        else made.get_name() == name
    )


def test_a_checkpoint_says_by_what_it_was_packed():
    as_object = SimpleNamespace(to_dict=lambda: {"quant_method": "gptq"})
    for config, method in (
        ({}, ""),
        ({"quantization_config": None}, ""),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"quantization_config": as_object}, "gptq"),
    ):
        assert stored_quant_method(SimpleNamespace(**config)) == method
