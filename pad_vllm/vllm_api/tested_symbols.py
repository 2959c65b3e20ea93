"""What of vLLM's inside is leaned on, and whether it still is what was tested.

In: a folder with the package `vllm`, installed or unpacked from a wheel. Out: of each symbol whether its
source is what the tests ran on. Reads files, and imports none of them. A symbol that changed need not be
broken, but it is where to look first.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TESTED_SYMBOLS: dict[str, dict[str, str]] = {
    "model_executor/layers/attention/attention.py": {
        "Attention.__init__": "0ed6062f4bfb",
        "Attention.forward": "88944f60da17",
        "Attention.process_weights_after_loading": "0fddab74206d",
        "_init_kv_cache_quant": "d30ca3c76707",
    },
    "forward_context.py": {
        "get_forward_context": "8a00d2f004c1",
    },
    "distributed/communication_op.py": {
        "tensor_model_parallel_all_reduce": "60e0add070ce",
    },
    "distributed/parallel_state.py": {
        "GroupCoordinator.all_reduce": "236d4ae694c4",
        "get_pp_group": "3807e8edce06",
        "model_parallel_is_initialized": "b13bc9ef9f42",
    },
    "distributed/utils.py": {
        "get_pp_indices": "2caedf88e71f",
    },
    "config/model.py": {
        "ModelConfig.get_total_num_hidden_layers": "1a16a4ac7cc5",
    },
    "model_executor/models/utils.py": {
        "PPMissingLayer": "5d049b07c37a",
        "make_layers": "46f545cdfa31",
    },
    "model_executor/model_loader/__init__.py": {
        "register_model_loader": "83f5ee674072",
        "get_model_loader": "2c8ad8687258",
    },
    "model_executor/model_loader/base_loader.py": {
        "BaseModelLoader": "a6506f04624c",
    },
    "model_executor/layers/fusion/quant_activation.py": {
        "get_input_quant_key": "2809ab1447e5",
    },
    "model_executor/layers/quantization/base_config.py": {
        "QuantizationConfig.get_name": "238f08da6a44",
    },
    "model_executor/layers/linear.py": {
        "LinearBase.__init__": "002b9c9a0665",
        "ColumnParallelLinear.__init__": "3ca48e12182a",
        "ColumnParallelLinear.forward": "af4d0eb5573d",
        "RowParallelLinear.__init__": "3a63ee92e9eb",
        "RowParallelLinear.forward": "693d179dcadc",
        "MergedColumnParallelLinear.__init__": "73fc44fad073",
        "QKVParallelLinear.__init__": "7fc696913105",
        "QKVParallelLinear.weight_loader": "ca32e13c79c8",
        "QKVParallelLinear.weight_loader_v2": "3b647650c795",
    },
    "model_executor/layers/vocab_parallel_embedding.py": {
        "ParallelLMHead": "a4f7424c30ff",
        "VocabParallelEmbedding.__init__": "73dc14af314c",
    },
    "model_executor/layers/logits_processor.py": {
        "LogitsProcessor.forward": "180ac5dcb521",
        "LogitsProcessor._get_logits": "fa77f2300fb7",
        "LogitsProcessor._gather_logits": "13e43c78db4c",
    },
    "lora/layers/logits_processor.py": {
        "LogitsProcessorWithLoRA._get_logits": "3f15be55393d",
    },
    "lora/request.py": {
        "LoRARequest": "080a257b0e0a",
    },
    "v1/worker/lora_model_runner_mixin.py": {
        "LoRAModelRunnerMixin.load_lora_model": "db6c0da5dad2",
    },
    "model_executor/models/llama.py": {
        "LlamaMLP.forward": "51b2e1d0763d",
        "LlamaAttention.forward": "78be7f1d5354",
        "LlamaDecoderLayer.forward": "344fafcc7d54",
        "LlamaModel.forward": "9bc493701ae2",
        "LlamaForCausalLM.compute_logits": "4c4f9c665212",
    },
    "model_executor/models/mistral.py": {
        "MistralDecoderLayer.forward": "8074f9c6ee4f",
    },
    "model_executor/models/qwen2.py": {
        "Qwen2Attention.forward": "6b5e103278e0",
        "Qwen2DecoderLayer.forward": "b1c4500f2bea",
        "Qwen2Model.forward": "c1af1c865d3b",
    },
    "model_executor/models/qwen3.py": {
        "Qwen3Attention.forward": "d1f8b9a2bd3c",
        "Qwen3DecoderLayer.forward": "b1c4500f2bea",
    },
    "model_executor/models/gemma3.py": {
        "Gemma3Attention.forward": "187a5e303a26",
        "Gemma3DecoderLayer.forward": "2aac2d3c484a",
        "Gemma3Model.forward": "839d440081ab",
    },
    "v1/sample/logits_processor/interface.py": {
        "BatchUpdate": "1403f34f0e4f",
        "MoveDirectionality": "5830e9a2a9f9",
        "LogitsProcessor": "928db3b236f5",
    },
    "v1/sample/logits_processor/state.py": {
        "BatchUpdateBuilder": "074f4675dab7",
    },
    "v1/sample/sampler.py": {
        "Sampler.forward": "724b34390fd3",
        "Sampler.apply_logits_processors": "039d4af1ba93",
    },
    "v1/worker/gpu_input_batch.py": {
        "InputBatch.update_async_output_token_ids": "dc525367c099",
    },
    "v1/worker/gpu/sample/logits_processor/interface.py": {
        "LogitsProcessor": "8a57f70674a0",
        "LogitsContext": "b89d10f5a4f4",
        "LogitsProcRequestState": "084a3e5301d6",
    },
    "v1/worker/gpu/sample/sampler.py": {
        "Sampler.apply_sampling_params": "e85be62164c6",
        "Sampler.apply_staged_writes": "f224c6e14b09",
    },
    "v1/worker/gpu/model_runner.py": {
        "GPUModelRunner.load_model": "c58120acc79f",
        "GPUModelRunner.add_requests": "a105e9ec3a7d",
        "GPUModelRunner.postprocess_sampled": "a0b2fdb35ecf",
    },
    "v1/worker/gpu/input_batch.py": {
        "InputBatch": "e440ca63ecd4",
    },
    "v1/worker/gpu/spec_decode/rejection_sampler.py": {
        "RejectionSampler.__call__": "67087432e3bd",
        "RejectionSampler._verify_in_chunks": "c14b70544802",
        "RejectionSampler._verify": "b7c2b99a4e18",
    },
    "v1/worker/gpu/spec_decode/standalone_ar/speculator.py": {
        "StandaloneARSpeculator.load_draft_model": "9f4ef1a00b0e",
    },
    "v1/executor/multiproc_executor.py": {
        "MultiprocExecutor.collective_rpc": "0f874ddee472",
    },
    "v1/worker/worker_base.py": {
        "WorkerBase.__init__": "43dbf6e8c726",
    },
    "v1/engine/input_processor.py": {
        "InputProcessor.__init__": "158d1dbc01a5",
        "InputProcessor._validate_params": "c3bb4678145b",
    },
    "entrypoints/openai/models/serving.py": {
        "OpenAIServingModels.__init__": "f9a78583dcc1",
        "OpenAIServingModels.load_lora_adapter": "b021f3a715fd",
        "OpenAIServingModels.unload_lora_adapter": "085aa7f843f0",
    },
    "entrypoints/serve/lora/protocol.py": {
        "LoadLoRAAdapterRequest": "980396147cd6",
        "UnloadLoRAAdapterRequest": "f48fb4cfdaf1",
    },
    "entrypoints/cli/serve.py": {
        "run_multi_api_server": "2ecd52ebc6d3",
    },
    "v1/engine/async_llm.py": {
        "AsyncLLM.is_sleeping": "35fd37f548cb",
        "AsyncLLM.generate": "da647bf183d6",
        "AsyncLLM.collective_rpc": "639118b4fb8e",
        "AsyncLLM.tokenizer": "23f9d8204a48",
    },
    "v1/engine/core_client.py": {
        "AsyncMPClient.call_utility_all_async": "7dbe7ca403d6",
    },
    "v1/engine/llm_engine.py": {
        "LLMEngine.add_request": "cd0811499210",
        "LLMEngine.step": "d67c644e135e",
        "LLMEngine.collective_rpc": "df79274452bf",
        "LLMEngine.tokenizer": "23f9d8204a48",
    },
    "v1/metrics/prometheus.py": {
        "get_prometheus_registry": "17ae32ed3c15",
        "unregister_vllm_metrics": "009387114d7d",
    },
    "outputs.py": {
        "CompletionOutput": "444b95f52a97",
    },
    "sampling_params.py": {
        "RequestOutputKind": "9589c0eb4849",
    },
    "entrypoints/openai/chat_completion/protocol.py": {
        "ChatCompletionRequest.to_sampling_params": "03e593f75d19",
        "ChatCompletionRequest.to_beam_search_params": "287845fbd407",
    },
    "entrypoints/openai/completion/protocol.py": {
        "CompletionRequest.to_sampling_params": "901558b41480",
        "CompletionRequest.to_beam_search_params": "900a0fdafc14",
    },
    "entrypoints/openai/responses/protocol.py": {
        "ResponsesRequest.to_sampling_params": "1a34913a86ef",
    },
    "entrypoints/openai/chat_completion/serving.py": {
        "OpenAIServingChat.chat_completion_full_generator": "ca730267eef1",
        "OpenAIServingChat.chat_completion_stream_generator": "fa825f3b3ad2",
    },
    "entrypoints/openai/chat_completion/batch_serving.py": {
        "OpenAIServingChatBatch.chat_completion_full_generator_batch": "45df86546eec",
    },
    "entrypoints/openai/completion/serving.py": {
        "OpenAIServingCompletion.completion_stream_generator": "6fcaf967498e",
        "OpenAIServingCompletion.request_output_to_completion_response": "8572ee9d68d5",
    },
    "entrypoints/openai/responses/serving.py": {
        "OpenAIServingResponses._generate_with_builtin_tools": "f93780e8c31f",
        "OpenAIServingResponses.responses_full_generator": "627df9876ea8",
    },
    "config/vllm.py": {
        "VllmConfig.compute_hash": "796dbd320a0e",
    },
}
"""File -> symbol -> hash of its source in the version of versions.TESTED."""


def vllm_folder() -> Path:
    """Of the installed package. Raises ValueError where there is none."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("vLLM is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def listed_symbols() -> list[tuple[str, str, str]]:
    """File, symbol and hash of all of them."""
    return [(file, name, h) for file, named in TESTED_SYMBOLS.items() for name, h in named.items()]


def changed_symbols(package: Path) -> dict[str, str]:
    """The symbols whose source is not the tested one, and how; package: the folder `vllm`."""
    found = [
        (file, name, h, source_hash(package, file, name)) for file, name, h in listed_symbols()
    ]
    return {
        f"{file}:{name}": "gone" if now is None else "changed"
        for file, name, tested, now in found
        if now != tested
    }


def source_hash(package: Path, file: str, name: str) -> str | None:
    """Of `Class.method` in a file; None where it is not there."""
    path = package / file
    if not path.is_file():
        return None
    source, tree = _parsed(path)
    node: ast.AST = tree
    for part in name.split("."):
        nodes = [one for one in _named(node) if getattr(one, "name", None) == part]
        if not nodes:
            return None
        node = nodes[-1]
    lines = (ast.get_source_segment(source, node) or "").splitlines()
    # Neither comments on lines of their own nor the layout count.
    kept = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:12]


@cache
def _parsed(path: Path) -> tuple[str, ast.Module]:
    source = path.read_text("utf-8")
    return source, ast.parse(source)


def _named(node: ast.AST) -> Iterator[ast.AST]:
    """What is defined right in a module or class, also under `if` and `try`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif isinstance(child, ast.If | ast.Try | ast.ExceptHandler):
            yield from _named(child)
