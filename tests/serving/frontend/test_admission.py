"""What is refused before an engine starts, on configs that only look like vLLM's."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
from types import SimpleNamespace
from typing import get_args

import pytest
import quantized_copies
import tiny
import torch
import vllm
from safetensors.torch import load_file, save_file
from vllm import envs
from vllm.config.cache import CacheDType
from vllm.config.speculative import SpeculativeMethod
from vllm.lora.request import LoRARequest

from pad_vllm import plugin
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.config import LOGITS_PROCESSOR
from pad_vllm.serving import registration
from pad_vllm.serving.frontend import admission
from pad_vllm.serving.registration import register_with_vllm
from pad_vllm.serving.start import config_checks, refused_features, unsupported_configs
from pad_vllm.training.merged_base import merge_lora
from pad_vllm.vllm_api import plugin_state, startup_probe
from pad_vllm.vllm_api.startup_probe import require_vllm_internals
from pad_vllm.vllm_api.vllm_names import BaseModelLoader
from pad_vllm.vllm_api.vllm_versions import IncompatibleVLLM

LORA = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(base, tmp_path):
    return tiny.write_adapter(base, tmp_path / "adapter", fork_layer=2, std=0.05)


@pytest.fixture
def config(base, folder):
    """A function that makes a config which PAD serves, but for the changes it is given."""

    def make(
        *,
        family="llama",
        model=base,
        settings=None,
        load_format="pad",
        processors=(LOGITS_PROCESSOR,),
        cache_dtype="auto",
        runner_type="generate",
        parallel=None,
        model_config=None,
        **rest,
    ):
        hf_config = tiny.config(family)
        hf_config.architectures = rest.pop("architectures", ["LlamaForCausalLM"])
        sizes = dict.fromkeys(
            (
                "pipeline_parallel_size",
                "tensor_parallel_size",
                "data_parallel_size",
                "data_parallel_size_local",
            ),
            1,
        )
        sizes["data_parallel_backend"] = "mp"
        features = dict.fromkeys(
            ("lora_config", "speculative_config", "kv_transfer_config", "quant_config")
        )
        return SimpleNamespace(
            additional_config={"pad": {"adapter": str(folder), **(settings or {})}},
            load_config=SimpleNamespace(load_format=load_format, download_dir=None),
            model_config=SimpleNamespace(
                logits_processors=list(processors),
                architectures=hf_config.architectures,
                runner_type=runner_type,
                model=str(model),
                revision=None,
                hf_config=hf_config,
                **{
                    "dtype": torch.bfloat16,
                    "model_impl": "auto",
                    "is_moe": False,
                    "get_total_num_hidden_layers": lambda: hf_config.num_hidden_layers,
                    **(model_config or {}),
                },
            ),
            parallel_config=SimpleNamespace(**{**sizes, **(parallel or {})}),
            cache_config=SimpleNamespace(cache_dtype=cache_dtype),
            **{**features, **rest},
        )

    return make


@pytest.fixture(autouse=True)
def hooks(monkeypatch):
    """Hooks that front ends of this process set are taken back after the test."""
    monkeypatch.setattr(admission, "check_server_requests", lambda *_: None)


class Extra(dict):
    """Request parameters, as far as admission looks at them."""

    @property
    def extra_args(self):
        return self or None


def test_only_one_answer_a_request_is_explained(config):
    admit, asked = (
        admission.make_admission(config()),
        Extra(pad_weights="brief=1", pad_explain=True),
    )
    asked.n = 1
    assert admit(asked) is not None
    asked.n = 2
    with pytest.raises(ValueError, match="pad_explain together with n 2.*accepted: n 1"):
        admit(asked)


def test_an_engine_that_does_not_ask_for_pad_is_left_alone(config):
    bare = config(load_format="auto", processors=())
    bare.additional_config = {}

    assert registration.request_check(bare) is None


def test_a_request_within_the_limits_passes_and_another_is_refused_by_name(config):
    admit = admission.make_admission(config())

    assert admit(Extra()) is None
    assert admit(Extra(pad_weights="helpful=1", pad_beta=3, somebody_elses=1)) is not None
    with pytest.raises(ValueError, match="helpfull.*Accepted dimensions: helpful, brief, humor"):
        admit(Extra(pad_weights="helpfull=1"))


@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_the_processor_without_the_load_format_is_refused(config, load_format):
    with pytest.raises(ValueError, match=f"needs load format 'pad', .*'{load_format}'; start with"):
        admission.make_admission(config(load_format=load_format))


@pytest.mark.parametrize("count", [0, 2])
def test_the_processor_is_needed_just_once(config, count):
    with pytest.raises(ValueError, match=f"PADLogitsProcessor is given {count} times.*start with"):
        admission.make_admission(config(processors=[LOGITS_PROCESSOR] * count))


def test_a_processor_given_as_a_class_counts_as_does_a_subclass(config):
    class PADLogitsProcessor:
        """Stands in for the class that users hand to LLM(...)."""

    class Mine(PADLogitsProcessor):
        """A user's own, which would guide as well."""

    assert admission.make_admission(config(processors=[PADLogitsProcessor])) is not None
    with pytest.raises(ValueError, match="given 2 times"):
        admission.make_admission(config(processors=[LOGITS_PROCESSOR, Mine]))


def test_other_processors_may_stand_beside_it(config):
    assert admission.make_admission(config(processors=["a:A", LOGITS_PROCESSOR, str])) is not None


def test_settings_alone_are_refused_and_not_passed_over(config):
    with pytest.raises(ValueError, match="needs load format 'pad'"):
        admission.make_admission(config(load_format="auto", processors=()))


def offload(cpu_offload_gb=0, offload_group_size=0, offload_backend="auto"):
    """vLLM's settings for weights that stay on the host."""
    return SimpleNamespace(
        offload_backend=offload_backend,
        uva=SimpleNamespace(cpu_offload_gb=cpu_offload_gb),
        prefetch=SimpleNamespace(offload_group_size=offload_group_size),
    )


ON = {
    "pipeline parallelism beyond the processes of one machine": {
        "parallel": {"pipeline_parallel_size": 2, "nnodes": 2}
    },
    "pipeline together with data parallelism": {
        "parallel": {"pipeline_parallel_size": 2, "data_parallel_size": 2}
    },
    "pipeline parallelism with --enable-lora": {
        "parallel": {"pipeline_parallel_size": 2},
        "lora_config": object(),
    },
    "pipeline parallelism with speculative decoding": {
        "parallel": {"pipeline_parallel_size": 2},
        "speculative_config": object(),
    },
    "tensor parallelism beyond the processes of one machine and the actors of Ray": {
        "parallel": {"tensor_parallel_size": 2, "nnodes": 2}
    },
    "batch-sharded sampling": {"parallel": {"enable_batch_sharded_sampling": True}},
    "expert parallelism": {"parallel": {"enable_expert_parallel": True}},
    "data parallelism of a mixture of experts": {
        "parallel": {"data_parallel_size": 2},
        "model_config": {"is_moe": True},
    },
    "data parallelism beyond the engines of one server": {
        "parallel": {"data_parallel_size": 2, "data_parallel_size_local": 1}
    },
    "context parallelism": {"parallel": {"decode_context_parallel_size": 2}},
    "dual batch overlap": {"parallel": {"use_ubatching": True}},
    "speculative decoding on vLLM's V1 runner": {"speculative_config": object()},
    "drafts by several MTP layers": {
        "speculative_config": SimpleNamespace(method="mtp", use_multi_module_mtp=lambda: True),
        "use_v2_model_runner": True,
    },
    "drafts by Gemma 4's assistant model": {
        "speculative_config": SimpleNamespace(method="mtp", use_gemma4_mtp=lambda: True),
        "use_v2_model_runner": True,
    },
    "DFlash drafters of another architecture than DFlashDraftModel": {
        "speculative_config": SimpleNamespace(
            method="dflash",
            draft_model_config=SimpleNamespace(architectures=["DFlash2DraftModel"]),
        ),
        "use_v2_model_runner": True,
    },
    "elastic expert parallelism": {"parallel": {"enable_elastic_ep": True}},
    "vLLM's Rust front end": {},
    "pooling": {"runner_type": "pooling"},
    "diffusion models": {"model_config": {"is_diffusion": True}},
    "weight offloading with prefetching": {"offload_config": offload(offload_group_size=2)},
    "weight transfer": {"weight_transfer_config": object()},
    "an implementation other than vLLM's own": {"model_config": {"model_impl": "transformers"}},
}


@pytest.mark.parametrize("name", ON)
def test_a_feature_that_is_not_supported_is_refused_with_the_way_out(config, monkeypatch, name):
    way_out = ways_out()[name]
    if "Rust" in name:
        monkeypatch.setattr(refused_features, "uses_rust_front_end", lambda: True)
    with pytest.raises(ValueError, match=re.escape(f"not support {name} yet; {way_out}.")):
        admission.make_admission(config(**ON[name]))


def test_tensor_parallelism_on_one_machine_is_served(config):
    for backend in (None, "mp"):
        parallel = {"tensor_parallel_size": 2, "distributed_executor_backend": backend}
        for stages in (1, 2):
            asked = config(parallel={**parallel, "pipeline_parallel_size": stages})
            assert admission.make_admission(asked) is not None


@pytest.mark.parametrize("executor", ["uni", "external_launcher", object])
def test_ranks_of_ray_are_served_and_those_of_executors_nobody_tried_are_not(config, executor):
    ranks = {"tensor_parallel_size": 2}
    asked = config(parallel={**ranks, "distributed_executor_backend": "ray", "use_ray": True})
    assert admission.make_admission(asked) is not None
    with pytest.raises(
        ValueError, match="and the actors of Ray yet; drop --nnodes, and start with"
    ):
        admission.make_admission(
            config(parallel={**ranks, "distributed_executor_backend": executor})
        )


@pytest.mark.parametrize(
    ("stages", "partition", "fork", "accepted"),
    [
        (2, None, 2, None),
        (2, None, 3, None),
        (2, None, 4, None),  # heads only
        (4, None, 2, "3, 4"),
        (2, None, 1, "2, 3, 4"),
        (2, "1,3", 1, None),
        (2, "3,1", 2, "3, 4"),
        (2, "4,0", 3, "4"),
    ],
)
def test_a_fork_is_in_the_last_stage_or_refused_with_those_that_are(
    config, base, tmp_path, monkeypatch, stages, partition, fork, accepted
):
    monkeypatch.setattr(envs, "VLLM_PP_LAYER_PARTITION", partition, raising=False)
    adapter = tiny.write_adapter(base, tmp_path / "other", fork_layer=fork, std=0.05)
    parallel = {"pipeline_parallel_size": stages}
    asked = config(parallel=parallel, settings={"adapter": str(adapter)})
    if accepted is None:
        assert admission.make_admission(asked) is not None
        return
    said = (
        f"the adapter's fork layer is {fork}: of 4 layers the last of {stages} stages has those from "
        f"{accepted[0]} on; accepted fork layers: {accepted} (at the top heads only). Give that stage"
    )
    with pytest.raises(ValueError, match=re.escape(said)):
        admission.make_admission(asked)


def test_data_parallelism_by_the_engines_of_one_server_is_served(config):
    parallel = {"data_parallel_size": 2, "data_parallel_size_local": 2}
    assert admission.make_admission(config(parallel=parallel)) is not None
    with pytest.raises(ValueError, match="beyond the engines of one server yet; keep all engines"):
        admission.make_admission(config(parallel={**parallel, "data_parallel_backend": "ray"}))


def ways_out():
    """Everything that `shared` refuses by name."""
    return {
        name: way_out
        for name, _, way_out in (
            *refused_features.REFUSED_BY_ALL,
            *refused_features.REFUSED_BY_ENGINE["shared"],
        )
    }


def test_every_refusal_by_name_is_looked_at():
    assert set(ON) == set(ways_out())


def drafting(**speculative):
    """A config that speculates on V2."""
    usual = {"num_speculative_tokens": 3, "rejection_sample_method": "standard"}
    usual["draft_model_config"] = SimpleNamespace(architectures=["DFlashDraftModel"])
    given = SimpleNamespace(**{**usual, **speculative})
    return {"speculative_config": given, "use_v2_model_runner": True}


@pytest.mark.parametrize("method", unsupported_configs.DRAFT_METHODS)
def test_drafts_of_the_tested_methods_are_served_on_v2(config, method):
    assert admission.make_admission(config(**drafting(method=method))) is not None


METHODS = {name for one in get_args(SpeculativeMethod) for name in get_args(one) or (one,)}


@pytest.mark.parametrize("method", sorted({"suffix", "dspark"} | METHODS))
def test_drafts_of_another_method_are_refused_by_its_name(config, method):
    if method in unsupported_configs.DRAFT_METHODS:
        return
    accepted = ", ".join(unsupported_configs.DRAFT_METHODS)
    with pytest.raises(ValueError, match=f"by '{method}' yet; accepted: {accepted}. Set"):
        admission.make_admission(config(**drafting(method=method)))


@pytest.mark.parametrize("how", ["synthetic", "block"])
def test_drafts_that_are_accepted_otherwise_than_by_the_guided_distribution_are_refused(
    config, how
):
    given = drafting(method="ngram", rejection_sample_method=how)
    with pytest.raises(ValueError, match=f"rejection_sample_method '{how}' yet; accepted is 'stan"):
        admission.make_admission(config(**given))


def test_drafts_that_a_step_may_leave_out_are_refused(config):
    given = drafting(method="ngram", enable_adaptive_verification=True)
    with pytest.raises(ValueError, match="enable_adaptive_verification yet.*drop it"):
        admission.make_admission(config(**given))


def test_offloaded_layers_would_bypass_a_fork_and_are_nothing_to_heads(config, heads):
    assert admission.make_admission(config(offload_config=offload())) is not None
    offloading = offload(cpu_offload_gb=1)
    with pytest.raises(ValueError, match="not fork a model with --cpu-offload-gb.*heads only"):
        admission.make_admission(config(offload_config=offloading))
    assert admission.make_admission(config(settings=heads, offload_config=offloading)) is not None
    for prefetching in (offload(1, offload_group_size=2), offload(offload_backend="prefetch")):
        with pytest.raises(ValueError, match="weight offloading with prefetching yet.*was not run"):
            admission.make_admission(config(settings=heads, offload_config=prefetching))


QUANTISED = [name for name in get_args(CacheDType) if name not in {"auto", "bfloat16", "float16"}]


@pytest.mark.parametrize("cache_dtype", [*QUANTISED, "float16", "a_type_of_tomorrow"])
def test_a_kv_cache_of_another_type_than_the_models_is_refused_by_its_name(config, cache_dtype):
    with pytest.raises(
        ValueError, match=f"KV cache of type '{cache_dtype}' .*--kv-cache-dtype bfloat16"
    ):
        admission.make_admission(config(cache_dtype=cache_dtype))


def test_a_kv_cache_of_the_models_own_type_is_served_however_it_is_asked_for(config):
    for dtype, cache_dtype in (
        (torch.bfloat16, "auto"),
        (torch.bfloat16, "bfloat16"),
        (torch.float16, "float16"),
        (torch.float32, "auto"),
    ):
        given = config(cache_dtype=cache_dtype, model_config={"dtype": dtype})
        assert admission.make_admission(given) is not None
    with pytest.raises(ValueError, match="type 'float16' .*--kv-cache-dtype auto"):
        admission.make_admission(
            config(cache_dtype="float16", model_config={"dtype": torch.float32})
        )


def packed_by(name, **more):
    """vLLM's description of a quantised model."""
    return SimpleNamespace(get_name=lambda: name, **more)


def test_a_checkpoint_that_would_quantise_the_kv_cache_is_refused_unless_told_otherwise(config):
    scheme = packed_by("compressed-tensors", kv_cache_scheme={"num_bits": 8, "type": "float"})
    assert admission.make_admission(config(cache_dtype="bfloat16", quant_config=scheme)) is not None
    with pytest.raises(ValueError, match="type 'fp8' .*--kv-cache-dtype bfloat16"):
        admission.make_admission(config(quant_config=scheme))


@pytest.fixture
def heads(base, tmp_path):
    """Settings of an adapter with heads only."""
    folder = tiny.write_adapter(base, tmp_path / "heads", fork_layer=4, std=0.05)
    return {"adapter": str(folder)}


def test_a_fork_is_refused_beside_loras_and_heads_are_not(config, heads):
    with pytest.raises(ValueError, match="not fork a model with --enable-lora yet; .*heads only"):
        admission.make_admission(config(lora_config=object()))
    admit = admission.make_admission(
        config(
            settings=heads, lora_config=object(), model_config={"served_model_name": ["base", "b"]}
        )
    )
    lora = LoRARequest("sql", 1, "/nowhere")
    assert admit(Extra(), lora) is None
    assert admit(Extra(pad_weights="helpful=1")) is not None
    with pytest.raises(
        ValueError, match="the LoRA 'sql'.*accepted: guided.*Ask for the model 'base'"
    ):
        admit(Extra(pad_weights="helpful=1"), lora)


def test_each_adapter_guides_requests_under_the_lora_that_it_was_trained_with(
    config, base, heads, tmp_path
):
    lora = tiny.write_lora(base, tmp_path / "sql", seed=1)
    merge_lora(base, lora, tmp_path / "merged")
    trained = tiny.write_adapter(tmp_path / "merged", tmp_path / "under", fork_layer=4, std=0.05)
    with pytest.raises(AdapterError, match="without the LoRA 'sql'.*Start with --enable-lora"):
        admission.make_admission(config(settings={"adapter": str(trained)}))
    served = {"lora_config": object(), "model_config": {"served_model_name": "base"}}
    both = {**heads, "adapters": {"sql": str(trained)}}
    for settings, named in (
        ({"adapter": str(trained)}, {}),
        (both, {"pad_adapter": "sql"}),
    ):
        admit = admission.make_admission(config(settings=settings, **served))
        asked = Extra(pad_weights="helpful=1", **named)
        assert admit(asked, LoRARequest("any", 1, str(lora))) is not None
        with pytest.raises(ValueError, match="trained with the LoRA 'sql'"):
            admit(asked)
    assert admit(Extra(pad_weights="helpful=1")) is not None
    with pytest.raises(ValueError, match="accepted: guided requests of the base"):
        admit(Extra(pad_weights="helpful=1"), LoRARequest("any", 1, str(lora)))


def test_kv_blocks_from_outside_are_refused_by_a_fork_and_not_by_heads(config, heads):
    connected = {"kv_transfer_config": object()}
    with pytest.raises(ValueError, match="not fork a model with a KV connector .*does not include"):
        admission.make_admission(config(**connected))
    assert admission.make_admission(config(settings=heads, **connected)) is not None


@pytest.mark.parametrize("cache_dtype", ["fp8", "fp8_e4m3", "fp8_e5m2"])
def test_heads_only_have_no_second_cache_and_take_any(config, heads, cache_dtype):
    assert admission.make_admission(config(settings=heads, cache_dtype=cache_dtype)) is not None


def test_methods_that_were_not_examined_are_refused_by_a_fork_and_not_by_heads(config, heads):
    strange = packed_by("torchao")
    with pytest.raises(ValueError, match="does not fork a base quantised by 'torchao' yet; acc"):
        admission.make_admission(config(quant_config=strange))
    assert admission.make_admission(config(settings=heads, quant_config=strange)) is not None
    assert admission.make_admission(config(quant_config=packed_by("auto_awq"))) is not None


def quantised_copy(base, folder, change=lambda embedding: embedding):
    """The base in int8, its token embedding changed."""
    made = quantized_copies.int8(base, folder)
    tensors = load_file(made / "model.safetensors")
    name = "model.embed_tokens.weight"
    save_file({**tensors, name: change(tensors[name])}, made / "model.safetensors")
    return made


def served(config, model, *, packed_by="compressed-tensors", **settings):
    """The config of a checkpoint that says itself how it is packed."""
    made = config(model=model, settings=settings)
    made.model_config.hf_config.quantization_config = {"quant_method": packed_by}
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_copy_of_the_backbone_is_known_by_its_embedding(
    config, base, tmp_path, caplog, dtype
):
    copy = quantised_copy(base, tmp_path / "copy", lambda e: e.to(dtype))
    made = served(config, copy)
    assert admission.make_admission(made) is not None
    pad = config_checks.pad_settings(made)
    with caplog.at_level(logging.WARNING):
        config_checks.check_backbone(made, pad, load_adapter(pad.adapter))
    assert "is quantised (compressed-tensors); its token embedding is that of" in caplog.text


def test_a_quantised_copy_of_another_model_is_refused(config, base, tmp_path):
    copy = quantised_copy(base, tmp_path / "copy", lambda e: e.flip(1))
    with pytest.raises(AdapterError, match="its token embedding is not that of .* rotated"):
        admission.make_admission(served(config, copy))
    assert admission.make_admission(served(config, copy, allow_backbone_mismatch=True)) is not None


def test_files_that_are_not_packed_are_compared_whole(config, base, tmp_path):
    copy = quantised_copy(base, tmp_path / "copy")
    with pytest.raises(AdapterError, match="with weights sha256:.*allow_backbone_mismatch"):
        admission.make_admission(served(config, copy, packed_by=""))


def test_a_model_that_cannot_be_forked_is_refused_with_those_that_can(config):
    with pytest.raises(
        ValueError, match="cannot fork OPTForCausalLM; it serves .*Qwen3ForCausalLM"
    ):
        admission.make_admission(config(architectures=["OPTForCausalLM"]))


def test_defaults_beyond_the_engines_limits_never_start(config):
    with pytest.raises(ValueError, match="default beta is 2, .* at most 0.5. Raise max_beta"):
        admission.make_admission(config(settings={"max_beta": 0.5}))
    with pytest.raises(ValueError, match="default top_k is 10, .* at most 5. Raise max_top_k"):
        admission.make_admission(config(settings={"max_top_k": 5}))


@pytest.mark.parametrize(
    "settings",
    [{"profile_reader": "cpu"}, {"profile_tokens": "env:X"}, {"learn_from_conversations": True}],
)
def test_what_serves_profiles_is_refused_without_them(config, settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} is given without profiles; add --profiles"):
        admission.make_admission(config(settings=settings))


def test_a_missing_path_is_refused(config, tmp_path):
    with pytest.raises(AdapterError, match="nowhere' does not exist.*Check the path"):
        admission.make_admission(config(settings={"adapter": str(tmp_path / "nowhere")}))


def test_a_plain_lora_is_refused(config, folder):
    (folder / "pad_config.json").unlink()
    with pytest.raises(AdapterError, match="has no pad_config.json .*plain LoRA"):
        admission.make_admission(config())


def test_a_truncated_adapter_is_refused(config, folder):
    file = folder / LORA
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(AdapterError, match=f"{LORA} is cut short.*Copy it again"):
        admission.make_admission(config())


def test_an_adapter_with_nan_is_refused(config, folder):
    spoil(folder, lambda name, tensor: tensor * torch.nan if "layers.3" in name else tensor)
    with pytest.raises(AdapterError, match="layer 3 .* holds NaN or infinity; .*Training diverged"):
        admission.make_admission(config())


def test_matrices_of_another_shape_are_refused_naming_both(config, folder):
    spoil(folder, lambda name, tensor: cut(tensor) if "down_proj.lora_A" in name else tensor)
    with pytest.raises(
        AdapterError, match=r"down_proj is for .* \[64, 95\], .* base has \[64, 96\]"
    ):
        admission.make_admission(config())


def spoil(folder, change):
    """Rewrite the LoRA's tensors, the rest of the adapter staying as it is."""
    tensors = load_file(folder / LORA)
    changed = {name: change(name, tensor).contiguous() for name, tensor in tensors.items()}
    save_file(changed, folder / LORA, metadata={"format": "pt"})


def cut(tensor):
    return tensor[:, :-1]


def test_a_fork_within_the_attention_pattern_is_refused_with_those_that_are_not(
    config, tmp_path, tmp_path_factory
):
    gemma = tiny.checkpoint("gemma3", tmp_path_factory.mktemp("gemma3"))
    odd = tiny.write_adapter(gemma, tmp_path / "odd", fork_layer=2, std=0.05)
    changes = {"family": "gemma3", "model": gemma, "architectures": ["Gemma3ForCausalLM"]}

    with pytest.raises(AdapterError, match="fork layer 2 cuts .*Accepted fork layers: 0, 3"):
        admission.make_admission(config(settings={"adapter": str(odd)}, **changes))
    even = tiny.write_adapter(gemma, tmp_path / "even", fork_layer=3, std=0.05)
    assert admission.make_admission(config(settings={"adapter": str(even)}, **changes)) is not None


@pytest.fixture
def retrained(tmp_path):
    """A base of the same shape with other weights."""
    tiny.model("llama", seed=1).save_pretrained(tmp_path / "retrained")
    return tmp_path / "retrained"


@pytest.fixture
def warnings(monkeypatch):
    seen = []
    monkeypatch.setattr(config_checks.logger, "warning", lambda *words: seen.append(words[-1]))
    return seen


def test_other_weights_are_refused_naming_both(config, retrained):
    with pytest.raises(
        AdapterError, match="'llama.*' with weights sha256:.*retrained' has sha256:"
    ):
        admission.make_admission(config(model=retrained))


@pytest.fixture
def other_weights_warning(config, retrained, warnings):
    """The worker's look at the weights, which comes after the front end's."""
    changed = config(model=retrained, settings={"allow_backbone_mismatch": True})
    admission.make_admission(changed)
    assert warnings == []  # the worker says it, once
    look_at_weights(changed)
    return warnings


def test_other_weights_are_a_warning_where_the_user_says_so(other_weights_warning):
    assert "going on, as allow_backbone_mismatch says" in other_weights_warning[0]


def test_dummy_weights_are_a_warning(config, warnings):
    dummy = config(settings={"load_format": "dummy"})
    look_at_weights(dummy)

    assert "could not be fingerprinted" in warnings[0]


def test_a_gguf_base_is_refused_by_name_whatever_loads_it(config):
    with pytest.raises(ValueError, match="load_format'] is 'GGUF'.*Dequantise the base"):
        admission.make_admission(config(settings={"load_format": "GGUF"}))


def test_weights_that_another_loader_has_elsewhere_are_compared_when_they_are_loaded(
    config, base, tmp_path, warnings
):
    copied = shutil.copytree(base, tmp_path / "config alone")
    (copied / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no \*.safetensors"):
        admission.make_admission(config(model=copied))
    elsewhere = config(model=copied, settings={"load_format": "runai_streamer"})
    assert admission.make_admission(elsewhere) is not None
    pad = config_checks.pad_settings(elsewhere)
    adapter = load_adapter(pad.adapter)
    sample = adapter.config.backbone.embedding_sample
    config_checks.check_backbone(elsewhere, pad, adapter, read_embedding=lambda _, trained: trained)
    assert "its token embedding is that of" in warnings[-1]
    config_checks.check_backbone(elsewhere, pad, adapter, read_embedding=lambda *_: None)
    assert "could not be fingerprinted" in warnings[-1]
    with pytest.raises(AdapterError, match="not in its folder, and its token embedding is not"):
        config_checks.check_backbone(
            elsewhere, pad, adapter, read_embedding=lambda *_: (9.0, *sample[1:])
        )


def test_a_hubs_model_that_is_not_fetched_yet_may_start_and_is_looked_at_then(
    config, tmp_path, monkeypatch
):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    monkeypatch.setattr(config_checks, "local_checkpoint", lambda *_: snapshot)
    hub = config(model="someone/model")

    assert admission.make_admission(hub) is not None
    with pytest.raises(ValueError, match=r"no \*.safetensors"):
        look_at_weights(hub)


def test_another_shape_is_refused_whatever_the_user_says(config, base, folder):
    loaded = load_adapter(folder)
    backbone = dataclasses.replace(loaded.config.backbone, vocab_size=400)
    text = dataclasses.replace(loaded.config, backbone=backbone).to_json()
    (folder / "pad_config.json").write_text(text, "utf-8")

    with pytest.raises(AdapterError, match=r"vocab_size 400, and the served .* has \d+"):
        admission.make_admission(config(settings={"allow_backbone_mismatch": True}))


def look_at_weights(config):
    """What the worker does when they are there."""
    pad = config_checks.pad_settings(config)
    config_checks.check_backbone(config, pad, load_adapter(pad.adapter))


def test_an_unknown_vllm_ends_only_engines_that_ask_for_pad(monkeypatch, caplog):
    def probe():
        raise IncompatibleVLLM("Attention.__init__ has no parameter 'prefix'")

    monkeypatch.setattr(registration, "require_vllm_internals", probe)
    monkeypatch.setattr(plugin_state, "_outcomes", [])
    with caplog.at_level(logging.ERROR):
        plugin.register()

    assert "PAD is off" in caplog.text
    assert "no parameter 'prefix'" in caplog.text
    with pytest.raises(IncompatibleVLLM):
        register_with_vllm()


def test_the_probe_names_what_is_missing_and_the_versions_that_have_it(monkeypatch):
    monkeypatch.setattr(BaseModelLoader, "load_model", lambda self, config: None)
    with pytest.raises(IncompatibleVLLM, match="no parameter 'vllm_config'; .*0.32"):
        require_vllm_internals()


@pytest.mark.parametrize(
    ("version", "accepted"),
    [("0.25.0", False), ("0.34.0", False), ("0.32.7+cpu", True), ("0.33.0", True), ("1.0", False)],
)
def test_a_release_that_was_not_looked_at_is_refused(monkeypatch, version, accepted):
    monkeypatch.setattr(vllm, "__version__", version)
    if accepted:
        require_vllm_internals()
        return
    with pytest.raises(IncompatibleVLLM, match=f"this is vLLM {version}.* accepts vLLM 0.32"):
        require_vllm_internals()


def test_a_build_between_releases_is_tried(monkeypatch):
    warnings = []
    monkeypatch.setattr(vllm, "__version__", "0.1.dev1+gabc")
    monkeypatch.setattr(startup_probe.logger, "warning", lambda form, *a: warnings.append(form % a))
    require_vllm_internals()
    assert "this is vLLM 0.1.dev1" in warnings[0]


def test_several_adapters_are_refused_beside_the_base(config, folder):
    several = {"adapters": {"work": str(folder)}, "engine": "resident"}
    with pytest.raises(ValueError, match="resident engine does not support several adapters"):
        config_checks.pad_settings(config(settings=several))
