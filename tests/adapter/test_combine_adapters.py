"""Merged adapters: each dimension gives the rewards that it gave in its own adapter."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch

from benchmarks.common.random_adapter import random_adapter
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.combine_adapters import AdapterPart, merge_adapters
from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.persrm import PersRM

LAYERS = 4
BACKBONE = Backbone("org/tiny", ("LlamaForCausalLM",), 64, LAYERS, 333, "sha256:" + "0" * 64)


def make_adapter(
    dimensions,
    rank,
    seed,
    *,
    constants=False,
    gates=False,
    fork=LAYERS,
    backbone=BACKBONE,
    **config,
):
    adapter = random_adapter(
        backbone,
        fork,
        dimensions,
        2,
        rank,
        shapes={},
        std=0.3,
        seed=seed,
        constants=constants,
        gates=gates,
    )
    changed = dataclasses.replace(adapter.config, **config)
    return dataclasses.replace(adapter, config=changed, path=f"folder-{seed}")


@pytest.fixture(scope="module")
def words():
    return make_adapter(
        ("kind", "brief"), 3, 1, constants=True, beta=0.4, training={"command": "one"}
    )


@pytest.fixture(scope="module")
def manner():
    return make_adapter(("warm", "formal"), 5, 2, beta=0.6, training={"command": "two"})


def test_every_dimension_gives_the_rewards_of_its_own_adapter(words, manner):
    both = merge_adapters([AdapterPart(words, {"brief": 1.0}), AdapterPart(manner, {})])
    assert both.config.dimensions == ("brief", "warm", "formal")
    h, ids = torch.randn(7, 64), torch.randint(0, 333, (7, 5))
    apart, together = (
        torch.cat(
            [PersRM.from_adapter(tiny.model("llama"), a).features(h, h, ids) for a in some], -1
        )
        for some in ((words, manner), (both,))
    )
    assert torch.allclose(together, apart[..., [1, 2, 3]], atol=1e-5)


def test_defaults_are_the_firsts_unless_given_and_every_part_records_how_it_was_trained(
    words, manner
):
    both = merge_adapters([AdapterPart(words, {}), AdapterPart(manner, {"formal": 1.0})])
    assert both.config.beta == 0.4
    given = merge_adapters(
        [AdapterPart(words, {}), AdapterPart(manner, {})], beta=0.5, min_p=0.15, loop_price=0.25
    ).config
    assert (given.beta, given.min_p, given.loop_price) == (0.5, 0.15, 0.25)
    assert both.config.training == {
        "parts": [
            {"command": "one", "dimensions": {"kind": 1.0, "brief": 1.0}},
            {"command": "two", "dimensions": {"formal": 1.0}},
        ]
    }


def test_a_merged_adapter_that_is_merged_again_lists_its_own_parts(words, manner):
    before = merge_adapters(
        [AdapterPart(words, {"kind": 0.5, "brief": 1.0}), AdapterPart(manner, {})]
    )
    parts = merge_adapters(
        [AdapterPart(before, {"kind": 2.0, "warm": 1.0}), AdapterPart(words, {"brief": 1.0})]
    ).config
    assert [part["dimensions"] for part in parts.training["parts"]] == [
        {"kind": 1.0},
        {"warm": 1.0},
        {"brief": 1.0},
    ]
    assert not any("parts" in part for part in parts.training["parts"])


def test_without_constants_there_are_none(manner):
    assert merge_adapters([AdapterPart(manner, {})]).head_C is None


def test_a_dimension_of_two_adapters_is_the_sum_of_their_rewards(words):
    other = make_adapter(("brief",), 4, 7)
    both = merge_adapters([AdapterPart(words, {"brief": 0.7}), AdapterPart(other, {"brief": 0.5})])
    assert both.config.dimensions == ("brief",)
    assert both.config.head_rank == 7
    h, ids = torch.randn(7, 64), torch.randint(0, 333, (7, 5))
    first, second, together = (
        PersRM.from_adapter(tiny.model("llama"), a).features(h, h, ids)
        for a in (words, other, both)
    )
    expected = 0.7 * first[..., 1:] + 0.5 * second
    assert torch.allclose(together, expected, atol=1e-5)


def test_gated_and_plain_heads_are_merged_and_summed_as_they_are_alone(words):
    gated = make_adapter(("brief", "odd"), 4, 8, gates=True)
    both = merge_adapters([AdapterPart(words, {}), AdapterPart(gated, {"brief": 0.5, "odd": 1.0})])
    assert both.config.dimensions == ("kind", "brief", "odd")
    assert (both.config.format_version, both.config.gated) == (4, True)
    h, ids = torch.randn(7, 64), torch.randint(0, 333, (7, 5))
    plain, other, together = (
        PersRM.from_adapter(tiny.model("llama"), a).features(h, h, ids)
        for a in (words, gated, both)
    )
    summed = plain[..., 1] + 0.5 * other[..., 0]
    expected = torch.stack((plain[..., 0], summed, other[..., 1]), -1)
    assert torch.allclose(together, expected, atol=1e-5)


def test_without_gates_a_merged_adapter_keeps_the_version_it_had(words, manner):
    both = merge_adapters([AdapterPart(words, {}), AdapterPart(manner, {})])
    assert (both.config.format_version, both.config.gated, both.head_G) == (2, False, None)


def test_an_unknown_dimension_is_refused_by_name(words):
    with pytest.raises(AdapterError, match="folder-3 has no dimension old; accepted: new"):
        merge_adapters(
            [AdapterPart(words, {}), AdapterPart(make_adapter(("new",), 2, 3), {"old": 1.0})]
        )


def test_another_backbone_or_template_is_refused(words):
    other_backbone = dataclasses.replace(BACKBONE, fingerprint="sha256:" + "1" * 64)
    with pytest.raises(AdapterError, match="folder-3 has another backbone than folder-1"):
        merge_adapters(
            [
                AdapterPart(words, {}),
                AdapterPart(make_adapter(("new",), 2, 3, backbone=other_backbone), {}),
            ]
        )
    with pytest.raises(AdapterError, match="another chat_template"):
        merge_adapters(
            [
                AdapterPart(words, {}),
                AdapterPart(make_adapter(("new",), 2, 3, chat_template="{{ x }}"), {}),
            ]
        )


def test_a_trunk_is_refused(words):
    from test_adapter_folder import make

    with pytest.raises(AdapterError, match="has a trunk \\(fork_layer 2 of 4\\)"):
        merge_adapters([AdapterPart(words, {}), AdapterPart(make(), {})])
