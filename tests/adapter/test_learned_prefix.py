"""Learned prefixes: the folder, PEFT's own reading of it, merging, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import tiny
import torch
from safetensors.torch import load_file

from benchmarks.common.random_adapter import random_adapter
from pad_vllm.adapter.adapter_folder import load_adapter, save_adapter
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.combine_adapters import AdapterPart, merge_adapters
from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.adapter.learned_prefix import LearnedPrefix
from pad_vllm.adapter.manifest import CONFIG_FILE, PrefixConfig, read_config
from pad_vllm.adapter.shape_checks import require_prefix_shapes

LAYERS, FORK = 4, 1
BASE = SimpleNamespace(
    num_hidden_layers=LAYERS,
    num_key_value_heads=2,
    num_attention_heads=4,
    head_dim=32,
    hidden_size=64,
)
BASE.get_text_config = lambda: BASE
BACKBONE = Backbone("org/tiny", ("LlamaForCausalLM",), 64, LAYERS, 333, "sha256:" + "0" * 64)


def make_adapter(names=("warm", "curt"), *, dimensions=("warm",), fork=FORK, seed=1):
    adapter = random_adapter(BACKBONE, LAYERS, dimensions, 2, 2, shapes={}, std=0.3, seed=seed)
    made = tiny.with_random_prefixes(adapter, BASE, fork, names, seed)
    return dataclasses.replace(made, path=f"folder-{seed}")


@pytest.fixture
def adapter():
    return make_adapter()


@pytest.fixture
def folder(adapter, tmp_path):
    save_adapter(adapter, tmp_path / "adapter", "# Card\n")
    return tmp_path / "adapter"


def change(file, **values):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **values}))


def test_a_folder_gives_back_what_was_saved(adapter, folder):
    loaded = load_adapter(folder)
    assert loaded.config == adapter.config
    assert loaded.digest == adapter.digest
    assert set(loaded.prefixes) == {"warm", "curt"}
    for name, prefix in adapter.prefixes.items():
        assert torch.equal(loaded.prefixes[name].keys, prefix.keys)
        assert torch.equal(loaded.prefixes[name].values, prefix.values)
    assert read_config(folder).prefixes == adapter.config.prefixes
    save_adapter(loaded, folder, "# Again\n")  # it holds an adapter's own files only
    assert load_adapter(folder).digest == adapter.digest


def test_half_precision_has_the_digest_that_it_is_loaded_with(adapter, tmp_path):
    half = LearnedPrefix(
        adapter.prefixes["warm"].keys.half(), adapter.prefixes["warm"].values.half()
    )
    config = dataclasses.replace(
        adapter.config, prefixes=PrefixConfig(FORK, 32, {"warm": half.digest})
    )
    saved = dataclasses.replace(adapter, config=config, prefixes={"warm": half})
    save_adapter(saved, tmp_path / "half", "# Card\n")
    loaded = load_adapter(tmp_path / "half")
    assert loaded.prefixes["warm"].keys.dtype == torch.float32
    assert torch.equal(loaded.prefixes["warm"].keys, half.keys.float())


def test_an_adapter_without_them_has_the_text_and_digest_of_earlier_releases(adapter):
    plain = random_adapter(BACKBONE, LAYERS, ("warm",), 2, 2, shapes={}, std=0.3, seed=1)
    assert "prefixes" not in json.loads(plain.config.to_json())
    assert plain.digest != adapter.digest


def test_peft_reads_the_folder_of_a_prefix_as_keys_and_values(adapter, folder):
    peft = pytest.importorskip("peft")
    from peft.tuners.prefix_tuning.model import PrefixEncoder

    own = folder / "prefixes" / "curt"
    config = peft.PrefixTuningConfig.from_pretrained(own)
    encoder = PrefixEncoder(config)
    weight = load_file(own / "adapter_model.safetensors")["prompt_embeddings"]
    encoder.embedding.weight.data.copy_(weight)
    flat = encoder(torch.arange(config.num_virtual_tokens)[None])
    # As PEFT makes past_key_values of it (peft/peft_model.py, get_prompt).
    per_layer = flat.view(
        1,
        config.num_virtual_tokens,
        config.num_layers * 2,
        config.num_attention_heads,
        config.token_dim // config.num_attention_heads,
    )
    found = per_layer.permute(2, 0, 3, 1, 4).split(2)
    assert len(found) == LAYERS - FORK
    prefix = adapter.prefixes["curt"]
    for (keys, values), own_keys, own_values in zip(found, prefix.keys, prefix.values, strict=True):
        assert torch.equal(keys[0], own_keys)
        assert torch.equal(values[0], own_values)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("prefixes/warm/adapter_config.json", {"peft_type": "LORA"}, "peft_type is 'LORA'"),
        ("prefixes/warm/adapter_config.json", {"num_layers": 2}, "num_layers is 2"),
        ("prefixes/warm/adapter_config.json", {"prefix_projection": True}, "prefix_projection"),
        ("prefixes/warm/adapter_config.json", {"num_attention_heads": 3}, "whole numbers"),
        ("prefixes/warm/adapter_config.json", {"token_dim": 32}, "has shape"),
        (CONFIG_FILE, {"format_version": 2}, "format_version is 2; accepted: 3"),
        (CONFIG_FILE, {"prefixes": {"fork_layer": 1}}, "prefixes"),
        (CONFIG_FILE, {"prefixes": ["warm"]}, "prefixes"),
    ],
)
def test_a_folder_that_says_something_else_is_refused(folder, file, values, message):
    change(folder / file, **values)
    with pytest.raises(AdapterError, match=message):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fork_layer": LAYERS}, "prefixes.fork_layer"),
        ({"fork_layer": -1}, "prefixes.fork_layer"),
        ({"num_tokens": 0}, "prefixes.num_tokens"),
        ({"num_tokens": True}, "prefixes.num_tokens"),
        ({"digests": {}}, "prefixes.digests"),
        ({"digests": {"warm": "short"}}, "prefixes.digests"),
        ({"digests": {"../warm": "0" * 64}}, "a dimension"),
    ],
)
def test_a_config_that_cannot_be_is_refused(folder, values, message):
    prefixes = json.loads((folder / CONFIG_FILE).read_text())["prefixes"]
    change(folder / CONFIG_FILE, prefixes={**prefixes, **values})
    with pytest.raises(AdapterError, match=message):
        load_adapter(folder)


def test_a_prefix_of_another_adapter_is_refused(folder):
    (folder / "prefixes" / "warm").rename(folder / "prefixes" / "other")
    (folder / "prefixes" / "curt").rename(folder / "prefixes" / "warm")
    (folder / "prefixes" / "other").rename(folder / "prefixes" / "curt")
    with pytest.raises(
        AdapterError, match="prefix (warm|curt) is not the one that pad_config.json lists"
    ):
        load_adapter(folder)


def test_a_missing_prefix_is_refused(folder):
    (folder / "prefixes" / "warm" / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="adapter_model.safetensors is missing"):
        load_adapter(folder)


def test_numbers_that_are_not_finite_are_refused():
    keys = torch.zeros(3, 2, 4, 8)
    with pytest.raises(AdapterError, match="NaN or infinity"):
        LearnedPrefix(keys, keys / 0)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_have_their_own_heads(num_ranks):
    keys = torch.arange(2.0).view(1, 2, 1, 1).expand(1, 2, 3, 5).contiguous()
    prefix, num_heads = LearnedPrefix(keys, keys), max(1, 2 // num_ranks)
    found = [
        prefix.heads_of_rank(rank, num_ranks, num_heads).keys[0, :, 0, 0].tolist()
        for rank in range(num_ranks)
    ]
    assert found == {1: [[0, 1]], 2: [[0], [1]], 4: [[0], [0], [1], [1]]}[num_ranks]


def test_another_number_of_kv_heads_or_width_is_refused(adapter):
    require_prefix_shapes(adapter, BASE)
    other = SimpleNamespace(**{**vars(BASE), "num_key_value_heads": 4})
    other.get_text_config = lambda: other
    with pytest.raises(AdapterError, match="2 KV heads of width 32, and the base has 4 of 32"):
        require_prefix_shapes(adapter, other)


def test_merging_keeps_the_prefixes_of_selected_dimensions():
    first = make_adapter(dimensions=("warm", "curt"))
    second = make_adapter(("formal",), dimensions=("formal",), seed=2)
    both = merge_adapters([AdapterPart(first, {"curt": 0.7}), AdapterPart(second, {})])
    assert list(both.prefixes) == ["curt", "formal"]
    assert both.config.prefixes.digests["curt"] == first.prefixes["curt"].digest
    assert both.config.format_version == 3
    without = merge_adapters([AdapterPart(first, {"curt": 1.0}), AdapterPart(first, {"warm": 1.0})])
    assert set(without.prefixes) == {"curt", "warm"}


def test_of_two_prefixes_of_one_name_the_first_stays(adapter):
    second = make_adapter(dimensions=("warm",), seed=2)
    both = merge_adapters([AdapterPart(adapter, {"warm": 0.7}), AdapterPart(second, {"warm": 0.7})])
    assert both.prefixes["warm"].digest == adapter.prefixes["warm"].digest


def test_a_factor_of_0_takes_the_prefix_and_leaves_the_head(adapter):
    names = ("warm", "curt", "formal")
    heads = make_adapter(("curt",), dimensions=names, seed=2)
    record = {"command": "one", "dose": {"table": []}}
    config = dataclasses.replace(adapter.config, training=record)
    adapter = dataclasses.replace(adapter, config=config)
    both = merge_adapters([AdapterPart(heads, {}), AdapterPart(adapter, {"warm": 0.0})])
    assert both.config.dimensions == names
    assert both.config.head_rank == heads.config.head_rank
    assert torch.equal(both.head_B, heads.head_B)
    assert both.prefixes["warm"].digest == adapter.prefixes["warm"].digest
    assert both.config.training["parts"][1] == {"command": "one", "dimensions": {"warm": 0.0}}


def test_a_factor_of_0_of_what_has_no_prefix_or_of_everything_is_refused(adapter):
    heads = make_adapter(("curt",), seed=2)
    with pytest.raises(AdapterError, match=r"has none of that name; accepted: another factor"):
        merge_adapters([AdapterPart(adapter, {}), AdapterPart(heads, {"warm": 0.0})])
    with pytest.raises(AdapterError, match=r"no head is taken"):
        merge_adapters([AdapterPart(adapter, {"warm": 0.0})])


def test_prefixes_of_other_fork_layers_are_not_merged(adapter):
    second = make_adapter(("formal",), dimensions=("formal",), fork=2, seed=2)
    with pytest.raises(AdapterError, match="fork layers"):
        merge_adapters([AdapterPart(adapter, {}), AdapterPart(second, {})])
