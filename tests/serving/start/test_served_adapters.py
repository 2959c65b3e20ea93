"""Several adapters as one: whose dimension is where, and what cannot stand side by side."""

from __future__ import annotations

import pytest
import tiny
import torch

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.config import PADConfig
from pad_vllm.params import parse_guidance
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
        "play": write("play", ("warm", "silly"), head_rank=6, seed=3),
        "forked": write("forked", ("warm",), fork_layer=2),
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
