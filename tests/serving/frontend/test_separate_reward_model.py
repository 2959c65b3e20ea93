"""What the engines with a reward model of their own refuse before they start."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import tiny
import torch

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.manifest import read_config
from pad_vllm.config import LOGITS_PROCESSOR, PADConfig
from pad_vllm.engines.reward_model.scorer_loader import reward_tokenizer
from pad_vllm.serving.frontend import admission
from pad_vllm.serving.start import config_checks, eos_tokens


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return tiny.checkpoint("llama", tmp_path_factory.mktemp("backbone") / "llama")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Of a family that `shared` could not fork for this adapter."""
    return tiny.checkpoint("gemma3", tmp_path_factory.mktemp("base") / "gemma")


@pytest.fixture
def config(base, backbone, tmp_path, monkeypatch):
    """A function that makes a config which `resident` serves, but for the changes it is given."""
    monkeypatch.setattr(admission, "check_server_requests", lambda *_: None)
    folder = tiny.write_adapter(backbone, tmp_path / "adapter", fork_layer=2, std=0.05)
    parallel = dict.fromkeys(
        ("pipeline_parallel_size", "tensor_parallel_size", "data_parallel_size"), 1
    )

    def make(settings=None, speculative_config=None, **model):
        pad = {"adapter": str(folder), "engine": "resident", "backbone": str(backbone)}
        usual = {
            "logits_processors": [LOGITS_PROCESSOR],
            "architectures": ["SomeForCausalLM"],
            "runner_type": "generate",
            "is_multimodal_model": False,
            "enable_prompt_embeds": False,
            "skip_tokenizer_init": False,
            "tokenizer": str(base),
            "tokenizer_revision": None,
            "trust_remote_code": False,
            "try_get_generation_config": lambda: {"eos_token_id": [1, 7]},
            "hf_config": SimpleNamespace(),
            "hf_text_config": SimpleNamespace(eos_token_id=1),
            "dtype": torch.bfloat16,
            "max_model_len": 512,
            "enable_sleep_mode": False,
        }
        return SimpleNamespace(
            additional_config={"pad": {**pad, **(settings or {})}},
            load_config=SimpleNamespace(load_format="pad", download_dir=None),
            model_config=SimpleNamespace(**{**usual, **model}),
            parallel_config=SimpleNamespace(**parallel),
            cache_config=SimpleNamespace(cache_dtype="auto"),
            lora_config=None,
            speculative_config=speculative_config,
            use_v2_model_runner=True,
            kv_transfer_config=None,
            quant_config=None,
        )

    return make


class Extra(dict):
    """Request parameters, as far as admission looks at them."""

    @property
    def extra_args(self):
        return self or None


@pytest.mark.parametrize("engine", ["resident", "ray"])
def test_a_base_of_any_family_is_served_and_may_be_asked_with_a_preference_in_words(config, engine):
    admit = admission.make_admission(config({"engine": engine}))
    admit(Extra(pad_weights="helpful=1", pad_preference="formal but humorous"))
    with pytest.raises(ValueError, match="helpfull.*Accepted dimensions: helpful, brief, humor"):
        admit(Extra(pad_weights="helpfull=1"))


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        ({"is_multimodal_model": True}, "multimodal bases"),
        ({"enable_prompt_embeds": True}, "prompts as embeddings"),
        ({"skip_tokenizer_init": True}, "a base without a tokenizer"),
    ],
)
def test_what_hides_the_bases_words_is_refused(config, feature, said):
    with pytest.raises(ValueError, match=f"resident engine does not support {said}"):
        admission.make_admission(config(**feature))


@pytest.mark.parametrize("engine", ["resident", "ray"])
def test_a_reward_model_of_its_own_reads_no_drafts(config, engine):
    drafts = SimpleNamespace(method="ngram")
    with pytest.raises(ValueError, match=f"{engine} engine does not support speculative decoding"):
        admission.make_admission(config({"engine": engine}, speculative_config=drafts))


@pytest.mark.parametrize("engine", ["resident", "ray"])
def test_the_base_may_sleep_beside_a_reward_model_of_its_own(config, engine):
    assert admission.make_admission(config({"engine": engine}, enable_sleep_mode=True)) is not None


@pytest.mark.parametrize("engine", ["resident", "ray"])
def test_loras_of_the_base_are_for_the_shared_engine(config, engine):
    asked = config({"engine": engine})
    asked.lora_config = object()
    with pytest.raises(ValueError, match=f"{engine} engine does not support --enable-lora yet"):
        admission.make_admission(asked)


@pytest.mark.parametrize("engine", ["resident", "ray"])
def test_stages_have_no_reward_model_beside_them(config, engine):
    asked = config({"engine": engine})
    asked.parallel_config.pipeline_parallel_size = 2
    with pytest.raises(ValueError, match=f"{engine} engine does not support pipeline parallelism"):
        admission.make_admission(asked)


@pytest.mark.parametrize("engine", ["resident", "ray"])
def test_workers_of_ray_have_no_reward_model_beside_them(config, engine):
    asked = config({"engine": engine})
    asked.parallel_config.use_ray = True
    with pytest.raises(ValueError, match=f"{engine} engine does not support vLLM's Ray executor"):
        admission.make_admission(asked)


@pytest.mark.parametrize("engine", ["resident", "ray"])
def test_data_parallel_engines_have_no_reward_model_beside_them(config, engine):
    asked = config({"engine": engine}, is_moe=False)
    asked.parallel_config.data_parallel_size = asked.parallel_config.data_parallel_size_local = 2
    asked.parallel_config.data_parallel_backend = "mp"
    with pytest.raises(ValueError, match=f"{engine} engine does not support data parallelism"):
        admission.make_admission(asked)


def test_a_backbone_that_is_not_the_adapters_is_refused(config, base):
    with pytest.raises(ValueError, match="Gemma3ForCausalLM"):
        admission.make_admission(config({"backbone": str(base)}))


def test_a_backbone_that_is_not_there_is_refused_with_how_to_name_it(config):
    with pytest.raises(ValueError, match="--additional-config.pad.backbone PATH"):
        admission.make_admission(config({"backbone": "/no/such/folder"}))


@pytest.mark.parametrize("engine", ["resident", "ray"])
@pytest.mark.parametrize(
    ("settings", "length", "most"), [({}, 513, 512), ({"cache_gib": 0.0001}, 512, 64)]
)
def test_a_base_whose_texts_outgrow_the_reward_model_is_refused_here_and_in_the_worker(
    config, engine, settings, length, most
):
    long = config({"engine": engine, **settings}, max_model_len=length)
    said = f"max_model_len of {length} .*--max-model-len {most}, or "
    with pytest.raises(ValueError, match=said):
        admission.make_admission(long)
    pad = config_checks.pad_settings(long)
    with pytest.raises(ValueError, match=said):
        config_checks.check_backbone(long, pad, load_adapter(pad.adapter))
    short = config({"engine": engine, **settings}, max_model_len=most)
    assert admission.make_admission(short) is not None
    config_checks.check_backbone(short, pad, load_adapter(pad.adapter))


def test_a_chat_template_may_be_a_file_or_the_text_and_nothing_else(config, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages[0]['content'] }}>", "utf-8")
    for given in (str(file), file.read_text("utf-8")):
        assert admission.make_admission(config({"chat_template": given})) is not None
    with pytest.raises(ValueError, match="neither a template nor a file"):
        admission.make_admission(config({"chat_template": "/no/such/file"}))


def test_to_stop_rows_the_base_needs_a_token_that_ends_them(config):
    stop = {"on_failure": "stop"}
    assert admission.make_admission(config(stop)) is not None
    several, none = SimpleNamespace(eos_token_id=[5, 6]), SimpleNamespace(eos_token_id=None)
    assert eos_tokens.required_eos_token_id(config(hf_text_config=several)) == 5
    assert eos_tokens.eos_token_ids(config(hf_text_config=several)) == [5, 6, 1, 7]
    assert eos_tokens.required_eos_token_id(config(hf_text_config=none)) == 1
    with pytest.raises(ValueError, match="on_failure is 'stop'"):
        admission.make_admission(config(stop, hf_text_config=none, try_get_generation_config=dict))


def test_the_reward_model_reads_prompts_by_the_template_it_was_trained_with(config):
    pad = PADConfig.from_additional_config(config().additional_config)
    trained = read_config(pad.adapter)
    own = reward_tokenizer(pad, trained)
    assert own.chat_template == tiny.tokenizer().chat_template
    given = dataclasses.replace(trained, chat_template="{{ messages[0]['content'] }}>")
    assert reward_tokenizer(pad, given).chat_template == given.chat_template
