"""Several adapters as one: whose dimension is where, and what cannot stand side by side."""

from __future__ import annotations

import platform
from types import SimpleNamespace

import pytest
import tiny
import torch
from threaded_ranks import ThreadedRanks

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.argument_names import INSTRUCTION_KEY
from pad_vllm.config import PADConfig
from pad_vllm.params import parse_guidance
from pad_vllm.request_limits import InstructionDefaults
from pad_vllm.serving.start import served_adapters


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    base = tiny.checkpoint("llama", root / "base")
    layers = tiny.config("llama").num_hidden_layers

    def write(name, dimensions, fork_layer=layers, **more):
        where = root / name
        tiny.write_adapter(
            base, where, fork_layer=fork_layer, std=0.1, dimensions=dimensions, **more
        )
        return str(where)

    return {
        "own": write("own", ("warm", "brief"), beta=1.0),
        "work": write("work", ("formal",), beta=0.5, constants=True, seed=2),
        "play": write("play", ("warm", "silly"), head_rank=6, seed=3, gates=True),
        "forked": write("forked", ("warm",), fork_layer=2),
        "learned": write("learned", ("warm",), prefixes=("warm", "curt"), seed=4),
        "more": write("more", ("formal",), prefixes=("warm",), seed=5),
        "higher": write("higher", ("formal",), prefixes=("odd",), prefix_fork_layer=2, seed=6),
    }


def settings(folders, *names, **more):
    return PADConfig(
        adapter=folders["own"], adapters={name: folders[name] for name in names}, **more
    )


def test_one_adapter_is_what_it_was(folders):
    pad = settings(folders)
    assert served_adapters.load_served_adapters(pad).digest == load_adapter(folders["own"]).digest
    assert parse_guidance(
        {"pad_weights": "brief=1"}, served_adapters.served_limits(pad)
    ).weights == (0.0, 1.0)


def test_a_weight_finds_its_own_adapters_head(folders):
    pad = settings(folders, "work", "play")
    whole, limits = served_adapters.load_served_adapters(pad), served_adapters.served_limits(pad)
    for name, dimension in (("work", "formal"), ("play", "warm"), (None, "brief")):
        named = {} if name is None else {"pad_adapter": name}
        asked = parse_guidance({"pad_weights": f"{dimension}=1", **named}, limits)
        own = load_adapter(folders[name or "own"])
        place, here = asked.weights.index(1.0), own.config.dimensions.index(dimension)
        assert sum(asked.weights) == 1.0
        assert asked.beta == own.config.beta
        torch.testing.assert_close(
            whole.head_B[place] @ whole.head_A[place], own.head_B[here] @ own.head_A[here]
        )
        gate = torch.zeros(own.config.head_rank, 64) if own.head_G is None else own.head_G[here]
        assert torch.equal(whole.head_G[place, : len(gate)], gate)
        constant = torch.zeros(()) if own.head_C is None else own.head_C[here]
        torch.testing.assert_close(whole.head_C[place], constant.expand_as(whole.head_C[place]))


def test_an_adapter_with_a_trunk_stands_beside_none(folders):
    with pytest.raises(AdapterError, match="has a trunk"):
        served_adapters.load_served_adapters(settings(folders, "forked"))


@pytest.mark.parametrize("given", [["a"], {"work": 3}, {"work": " "}])
def test_adapters_are_names_and_folders(folders, given):
    from pad_vllm.config import PAD_KEY

    with pytest.raises(ValueError, match="names and folders"):
        PADConfig.from_additional_config({PAD_KEY: {"adapter": folders["own"], "adapters": given}})


def test_without_an_adapter_there_is_one_of_no_dimension_on_the_bases_own_shape():
    pad = PADConfig(instructions=True)
    hf_config = tiny.config("llama", architectures=["LlamaForCausalLM"])
    adapter = served_adapters.load_served_adapters(pad, SimpleNamespace(hf_config=hf_config))
    H = hf_config.hidden_size
    assert adapter.config.dimensions == ()
    assert adapter.config.heads_only
    assert adapter.config.fork_layer == hf_config.num_hidden_layers
    assert adapter.config.backbone.architectures == ("LlamaForCausalLM",)
    assert (adapter.head_A.shape, adapter.head_B.shape, adapter.head_C) == (
        (0, 1, H),
        (0, H, 1),
        None,
    )
    assert (
        adapter.digest
        == served_adapters.load_served_adapters(pad, SimpleNamespace(hf_config=hf_config)).digest
    )  # vLLM's compile cache is looked up by it


def test_without_an_adapter_requests_say_what_they_prefer_in_a_sentence():
    limits = served_adapters.served_limits(PADConfig(instructions=True))
    assert (limits.dimensions, limits.engine) == ((), "shared")
    assert limits.instructions == InstructionDefaults()
    asked = parse_guidance({"pad_preference": "be kind", INSTRUCTION_KEY: [[3], [4]]}, limits)
    assert (asked.weights, asked.instruction) == ((), ((3,), (4,)))
    with pytest.raises(
        ValueError, match="pad_weights names 'warm', and this server has no adapter"
    ):
        parse_guidance({"pad_weights": "warm=1"}, limits)


def test_a_server_without_an_adapter_starts_whatever_its_maxima():
    limits = served_adapters.served_limits(PADConfig(instructions=True, max_beta=0.5, max_top_k=3))
    assert (limits.beta, limits.top_k, limits.max_beta, limits.max_top_k) == (0.5, 3, 0.5, 3)


@pytest.mark.parametrize("instructions", [True, False])
def test_beside_adapters_a_sentence_is_accepted_where_the_server_takes_instructions(
    folders, instructions
):
    pad = settings(folders, "work", instructions=instructions)
    limits = served_adapters.served_limits(pad)
    for named in ({}, {"pad_adapter": "work"}):
        asked = {"pad_preference": "be kind", **named}
        if not instructions:
            with pytest.raises(ValueError, match="no preference text on the 'shared' engine"):
                parse_guidance(asked, limits)
            continue
        assert not any(parse_guidance(asked, limits).weights)
        assert parse_guidance(asked, limits).beta == InstructionDefaults().beta
    assert parse_guidance({"pad_weights": "warm=1"}, limits).beta == 1.0


def test_the_defaults_of_an_instruction_keep_to_the_servers_maxima():
    pad = PADConfig(instructions=True, max_beta=1.0, max_top_k=10)
    asked = parse_guidance({"pad_preference": "be kind"}, served_adapters.served_limits(pad))
    assert (asked.beta, asked.top_k) == (1.0, 10)


def test_learned_prefixes_of_every_adapter_are_served_by_name(folders):
    pad = settings(folders, "learned", "more", instructions=True)
    served = served_adapters.load_served_adapters(pad)
    own = {name: load_adapter(folders[name]).prefixes for name in ("learned", "more")}
    digests = {prefix.digest for prefixes in own.values() for prefix in prefixes.values()}
    assert {prefix.digest for prefix in served.prefixes.values()} == digests
    limits = served_adapters.served_limits(pad)
    assert not limits.prefixes
    for name, prefixes in own.items():
        found = limits.for_adapter(name).prefixes
        assert {key: one.digest for key, one in found.items()} == {
            key: prefix.digest for key, prefix in prefixes.items()
        }


def test_learned_prefixes_of_other_fork_layers_are_refused(folders):
    pad = settings(folders, "learned", "higher", instructions=True)
    with pytest.raises(AdapterError, match="--prefix-fork-layer"):
        served_adapters.load_served_adapters(pad)


def test_ranks_that_have_read_different_files_under_one_path_are_all_refused(folders, monkeypatch):
    pad = settings(folders)
    own, other = (load_adapter(folders[name]) for name in ("own", "play"))
    world = ThreadedRanks(2)
    monkeypatch.setattr(served_adapters, "parallel_ranks", world)
    world.run(lambda _: served_adapters.require_one_digest(pad, own))

    def said(rank):
        with pytest.raises(AdapterError) as error:
            served_adapters.require_one_digest(pad, (own, other)[rank])
        return str(error.value)

    first, second = world.run(said)
    assert first == second
    found = f"rank 0 {own.digest} on {platform.node()}, rank 1 {other.digest} on {platform.node()}"
    assert f"different files from {folders['own']}, by their digest: {found}; acc" in first
    assert "Copy one folder to all hosts" in first


def test_a_process_of_its_own_agrees_with_itself(folders):
    pad = settings(folders, "work")
    served_adapters.require_one_digest(pad, served_adapters.load_served_adapters(pad))
