"""Stages of pipeline parallelism below the last: PAD loads the model there and is otherwise not there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

import numpy as np
import tiny
import torch
from torch import nn
from vllm import SamplingParams
from vllm.config.load import LoadConfig
from vllm.v1.sample.logits_processor.interface import BatchUpdate
from vllm.v1.worker.worker_base import WorkerBase

import pad_vllm
from pad_vllm.guidance_outcome import OUTCOME_KEY
from pad_vllm.serving.worker import (
    instance,
    logits_processor,
    model_loader,
    runtime_adapter_updates,
)
from pad_vllm.serving.worker.logits_processor import PADLogitsProcessor
from pad_vllm.vllm_api import parallel_ranks
from pad_vllm.vllm_api.patches.outcome_rpc import OUTCOME_METHOD, _merge_reports

NAMES = (
    OUTCOME_METHOD,
    runtime_adapter_updates.ADD_ADAPTER_RPC,
    runtime_adapter_updates.REMOVE_ADAPTER_RPC,
)
GUIDED = {"pad_weights": "helpful=1", OUTCOME_KEY: "mine"}


@pytest.fixture
def config(tmp_path, request):
    """As much of a VllmConfig as is asked for, of the first of two stages."""
    model = tiny.checkpoint("llama", tmp_path / "base")
    adapter = tiny.write_adapter(model, tmp_path / "adapter", fork_layer=2, std=0.1)
    hf_config = tiny.config("llama")
    hf_config.architectures = ["LlamaForCausalLM"]
    return SimpleNamespace(
        instance_id=request.node.name,
        load_config=SimpleNamespace(load_format="pad", download_dir=None),
        additional_config={"pad": {"adapter": str(adapter)}},
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=2, tensor_parallel_size=1, data_parallel_size=1
        ),
        **dict.fromkeys(
            ("lora_config", "speculative_config", "kv_transfer_config", "quant_config")
        ),
        cache_config=SimpleNamespace(cache_dtype="auto"),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
        model_config=SimpleNamespace(
            model=str(model),
            revision=None,
            runner_type="generate",
            architectures=hf_config.architectures,
            logits_processors=[PADLogitsProcessor],
            model_impl="auto",
            dtype=torch.float32,
            get_vocab_size=lambda: hf_config.vocab_size,
            get_hidden_size=lambda: hf_config.hidden_size,
            skip_tokenizer_init=True,
            hf_config=hf_config,
            hf_text_config=hf_config,
            get_total_num_hidden_layers=lambda: 4,
            try_get_generation_config=dict,
        ),
    )


@pytest.fixture
def below(monkeypatch):
    """This process is such a stage; what is said to the workers is taken back after the test."""
    monkeypatch.setattr(model_loader, "computes_logits", lambda: False)
    monkeypatch.setattr(parallel_ranks, "computes_logits", lambda: False)
    for name in NAMES:
        monkeypatch.setattr(WorkerBase, name, None, raising=False)


class Stage(nn.Module):
    """The lower layers of a model: neither norm nor lm_head."""


class Inner:
    """vLLM's own loader."""

    def load_model(self, _config, _model_config):
        return Stage()


def test_the_loader_leaves_the_model_alone_and_has_nothing_to_say(config, below, monkeypatch):
    monkeypatch.setattr(model_loader, "get_model_loader", lambda _config: Inner())
    monkeypatch.setattr(model_loader.logging.getLogger(pad_vllm.__name__), "level", 0)
    made = model_loader.PADModelLoader(LoadConfig(load_format="pad"))

    model = made.load_model(config, config.model_config)

    assert type(model) is Stage
    assert vars(model).keys() == vars(Stage()).keys()
    assert instance.find_instance(config.instance_id) is None
    worker = SimpleNamespace(vllm_config=config)
    for name in NAMES:
        assert getattr(WorkerBase, name)(worker, ["mine"], 1, 2) is None


def test_a_fork_below_the_last_stage_is_refused_in_the_worker_too(config, below, monkeypatch):
    monkeypatch.setattr(model_loader, "get_model_loader", lambda _config: Inner())
    monkeypatch.setattr(model_loader.logging.getLogger(pad_vllm.__name__), "level", 0)
    config.parallel_config.pipeline_parallel_size = 4
    with pytest.raises(ValueError, match="accepted fork layers: 3, 4"):
        model_loader.PADModelLoader(LoadConfig(load_format="pad")).load_model(
            config, config.model_config
        )


def test_the_processor_keeps_no_requests_there_and_prepares_no_step(config, below, monkeypatch):
    """V1 makes one on every stage, and tells each of the batch."""
    monkeypatch.setattr(logits_processor.vocabulary, "num_token_columns", None)
    monkeypatch.setattr(logits_processor.kernel_choice, "choose_rule", None)
    processor = PADLogitsProcessor(config, torch.device("cpu"), False)
    added = [(0, SamplingParams(extra_args=GUIDED), [1], [])]
    processor.update_state(BatchUpdate(1, [], added, []))

    assert len(processor._slots) == 0
    assert instance.report_outcomes(config.instance_id, ["mine"]) == ([None], None)
    logits = torch.from_numpy(np.arange(8, dtype=np.float32))[None]
    assert torch.equal(processor.apply(logits.clone()), logits)


def test_the_report_of_the_last_stage_is_used():
    known = {"guided_tokens": 1, "unguided_tokens": 2, "stopped": False}
    assert _merge_reports([[None, ([known], None)]]) == [known]


def test_there_is_one_stage_where_there_is_no_group():
    assert parallel_ranks.computes_logits()


def test_the_last_stage_has_the_layers_that_vllm_gives_it(config):
    assert parallel_ranks.last_stage_layers(config) == range(2, 4)
