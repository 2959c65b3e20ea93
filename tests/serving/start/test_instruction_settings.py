"""What a server with instructions is set to, and what it was not built for."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.manifest import FORMAT_2, FORMAT_3, AdapterConfig, PrefixConfig
from pad_vllm.config import PADConfig
from pad_vllm.serving.start import instruction_settings
from pad_vllm.serving.start.unsupported_configs import require_supported


def adapter(num_layers=10, fork_layer=None, architecture="LlamaForCausalLM"):
    """Heads only, unless it is forked."""
    return AdapterConfig(
        format_version=FORMAT_2,
        backbone=Backbone("tiny", (architecture,), 16, num_layers, 50, None),
        fork_layer=num_layers if fork_layer is None else fork_layer,
        dimensions=("helpful",),
        head_rank=2,
        beta=1.0,
        top_k=10,
    )


def vllm_config(*, stages=1, scheduler=None, **model):
    return SimpleNamespace(
        parallel_config=SimpleNamespace(pipeline_parallel_size=stages),
        model_config=SimpleNamespace(**model),
        scheduler_config=SimpleNamespace(scheduler_cls=scheduler),
    )


@pytest.mark.parametrize("forked_at", [3, 10])
def test_without_instructions_the_adapter_says_where_the_fork_is(forked_at):
    pad = PADConfig(adapter="a", fork_layer=1)
    assert instruction_settings.fork_layer(pad, adapter(fork_layer=forked_at)) == forked_at


@pytest.mark.parametrize(
    ("architecture", "num_layers", "layer"),
    [
        ("LlamaForCausalLM", 30, 12),
        ("LlamaForCausalLM", 32, 13),
        ("Qwen2ForCausalLM", 24, 10),
        ("Qwen2ForCausalLM", 28, 11),
        ("Qwen3ForCausalLM", 36, 14),
        ("LlamaForCausalLM", 2, 1),
        ("LlamaForCausalLM", 1, 0),
    ],
)
def test_where_nothing_else_is_said_it_is_where_instructions_enter(architecture, num_layers, layer):
    config = adapter(num_layers=num_layers, architecture=architecture)
    assert instruction_settings.fork_layer(PADConfig(instructions=True), config) == layer


@pytest.mark.parametrize("layer", [0, 4, 9])
def test_it_may_be_said(layer):
    pad = PADConfig(instructions=True, fork_layer=layer)
    assert instruction_settings.fork_layer(pad, adapter()) == layer


@pytest.mark.parametrize("layer", [10, 99])
def test_a_layer_that_the_base_does_not_have_is_refused_with_those_it_has(layer):
    pad = PADConfig(instructions=True, fork_layer=layer)
    with pytest.raises(
        ValueError, match=f"'fork_layer'.* is {layer}; .*: 0 to 9. Leave it out for 4"
    ):
        instruction_settings.fork_layer(pad, adapter())


@pytest.mark.parametrize("layer", [None, 2])
def test_an_adapter_whose_reward_stream_is_its_own_is_refused(layer):
    pad = PADConfig(adapter="a", instructions=True, fork_layer=layer)
    with pytest.raises(ValueError, match="a trunk from layer 3 up.*drop --instructions"):
        instruction_settings.fork_layer(pad, adapter(fork_layer=3))


def rope(**text_config):
    """vLLM's config of a base whose own config has this."""
    return vllm_config(hf_text_config=SimpleNamespace(**text_config))


@pytest.mark.parametrize(
    "served", [{}, {"enable_sleep_mode": False, "uses_mrope": False, "max_model_len": 64}]
)
def test_a_plain_config_is_accepted(served):
    instruction_settings.require_instructions_supported(vllm_config(**served))


@pytest.mark.parametrize("value", [None, {}, {"rope_type": "llama3", "factor": 8.0}])
def test_other_rotary_embeddings_are_accepted(value):
    instruction_settings.require_instructions_supported(rope(rope_parameters=value))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (vllm_config(stages=2), "pipeline parallelism.*drop --pipeline-parallel-size"),
        (vllm_config(enable_sleep_mode=True), "sleeps.*drop --enable-sleep-mode"),
        (vllm_config(scheduler="my.Scheduler"), "my.Scheduler; drop --scheduler-cls"),
        (vllm_config(uses_mrope=True), "M-RoPE.*drop --instructions"),
        (rope(rope_parameters={"rope_type": "longrope"}), "LongRoPE.*drop --instructions"),
        (rope(rope_scaling={"type": "longrope"}), "LongRoPE"),
        (rope(rope_parameters={"full_attention": {"rope_type": "longrope"}}), "LongRoPE"),
    ],
    ids=["pipeline", "sleep", "scheduler", "M-RoPE", "LongRoPE", "older config", "by layer type"],
)
def test_what_it_was_not_built_for_is_refused_with_what_to_drop(config, said):
    with pytest.raises(ValueError, match=said):
        instruction_settings.require_instructions_supported(config)


@pytest.mark.parametrize("engine", ["resident", "ray"])
def test_an_engine_with_a_reward_model_of_its_own_reads_none(engine):
    pad = PADConfig(adapter="a", instructions=True, engine=engine, backbone="b")
    with pytest.raises(ValueError, match=f"'instructions'.* is true, and the engine '{engine}'"):
        require_supported(SimpleNamespace(), pad)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"instructions": True, "adapters": {"work": "b"}}, "work as further adapters.*'adapter'"),
        ({"adapter": "a", "fork_layer": 3}, "'fork_layer'.* is 3, .*set 'instructions'"),
    ],
    ids=["no first adapter", "fork layer"],
)
def test_settings_that_nothing_would_read_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        require_supported(SimpleNamespace(), PADConfig(**settings))


def test_limits_are_those_of_the_settings():
    pad = PADConfig(instructions=True, max_instructions=5, max_instruction_tokens=33)
    limits = instruction_settings.instruction_limits(pad)
    assert (limits.max_instructions, limits.max_tokens) == (5, 33)


@pytest.mark.parametrize(
    ("settings", "block_size", "reserved"),
    [
        ({"adapter": "a"}, 16, 0),
        ({"adapter": "a", "instructions": False, "max_instructions": 9}, 16, 0),
        ({"instructions": True}, 16, 32 * 8),
        ({"instructions": True}, 128, 32),
        ({"instructions": True, "max_instructions": 5, "max_instruction_tokens": 33}, 16, 5 * 3),
        ({"adapter": "a", "instructions": True, "max_instructions": 1}, 64, 2),
    ],
)
def test_every_instruction_has_blocks_that_the_scheduler_does_not_get(
    settings, block_size, reserved
):
    pad = PADConfig.from_additional_config({"pad": settings})
    assert instruction_settings.num_reserved_blocks(pad, block_size) == reserved


def with_prefixes(fork_layer=6, num_tokens=32):
    prefixes = PrefixConfig(fork_layer, num_tokens, {"warm": "0" * 64})
    return replace(adapter(), format_version=FORMAT_3, prefixes=prefixes)


def test_learned_prefixes_say_where_the_fork_is():
    pad = PADConfig(adapter="a", instructions=True)
    assert instruction_settings.fork_layer(pad, with_prefixes()) == 6
    assert instruction_settings.fork_layer(replace(pad, fork_layer=6), with_prefixes()) == 6
    assert instruction_settings.fork_layer(PADConfig(adapter="a"), with_prefixes()) == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fork_layer": 5}, "fork layer 6, and this server's is 5"),
        ({"max_instruction_tokens": 31}, "have 32 tokens.* is 31; raise it to 32"),
    ],
)
def test_a_server_that_cannot_read_them_is_refused(settings, message):
    pad = PADConfig(adapter="a", instructions=True, **settings)
    with pytest.raises(ValueError, match=message):
        instruction_settings.fork_layer(pad, with_prefixes())
