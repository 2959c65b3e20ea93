"""The features of docs/support.md: how a vLLM config uses each, and which tests run it with which engine.

In: nothing. Out: a table. Whether a feature is refused does not stand here: support_matrix.py asks the code
that `pad-vllm check` and vLLM's start-up run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

HEADS, FORK, WORDS, RESIDENT, RAY = "heads only", "fork", "instructions", "resident", "ray"
COLUMNS = (HEADS, FORK, WORDS, RESIDENT, RAY)
"""Ways to serve: `shared` with heads only, with forked layers, with --instructions; the other two engines."""

V1, V2, BOTH = ("V1",), ("V2",), ("V1", "V2")

Changes = Mapping[str, object]
"""Dotted name of a field of vLLM's config -> its value."""


class Feature(NamedTuple):
    """One row."""

    name: str
    """What the page calls it."""

    changes: Changes | None
    """How a config uses it; None where PAD has no rule about it."""

    tested: Mapping[str, tuple[str, ...]] = {}
    """Column -> runners on which a test runs a whole engine with it."""

    test: str = ""
    """That test, in tests/end_to_end/."""

    allowed: tuple[str, ...] = ()
    """Columns where it is accepted, and a reason stands in the docs, though no test runs it."""

    without: tuple[str, ...] = ()
    """Columns where the question does not arise."""

    request: Mapping[str, object] | None = None
    """Fields of a guided request that uses it, where it is no matter of the config."""


def _parallel(**values: object) -> dict[str, object]:
    return {f"parallel_config.{name}": value for name, value in values.items()}


def _drafts(method: str) -> dict[str, object]:
    return {"speculative_config.method": method}


_SHARED = {HEADS: BOTH, FORK: BOTH}
_EVERY_DRAFTER = {HEADS: V2, FORK: V2}

PLAIN: tuple[Feature, ...] = (
    Feature(
        "greedy and drawn answers, many at once",
        {},
        {**_SHARED, WORDS: BOTH, RESIDENT: BOTH, RAY: BOTH},
        "test_ray.py",
    ),
    Feature(
        "prefix caching, chunked prefill, preemption",
        {},
        {FORK: BOTH, WORDS: BOTH, RESIDENT: V1},
        "test_features.py",
        (HEADS, RAY),
    ),
    Feature(
        "structured output, masks, stops, seeds, n > 1, logprobs",
        {},
        {FORK: BOTH, WORDS: BOTH},
        "test_features.py",
        (HEADS, RESIDENT, RAY),
    ),
    Feature("the server's routes and streams", {}, {FORK: BOTH}, "test_server.py", (HEADS, WORDS)),
    Feature("tool calls", {}, {FORK: BOTH}, "test_server.py", (HEADS, WORDS),
            request={"tools": [{"type": "function"}]}),
    Feature("several adapters on one server", None, {HEADS: BOTH}, "test_adapters.py"),
    Feature("adapters loaded while it runs", None, {HEADS: BOTH, WORDS: BOTH}, "test_runtime_adapters.py"),
    Feature("a reasoning model's thoughts left unguided", {"pad.reasoning": "unguided"}, {FORK: V2},
            "test_thinking.py", (HEADS, WORDS)),
    Feature("sleep mode and reloaded weights", {"model_config.enable_sleep_mode": True},
            {FORK: BOTH, RESIDENT: V1}, "test_reload.py", (HEADS,)),
)  # fmt: skip

PARALLEL: tuple[Feature, ...] = (
    Feature(
        "tensor parallelism on one machine",
        _parallel(tensor_parallel_size=2, distributed_executor_backend="mp"),
        {HEADS: BOTH, FORK: BOTH, WORDS: V1, RESIDENT: V1},
        "test_tensor_parallel.py",
    ),
    Feature(
        "tensor parallelism by Ray's executor",
        _parallel(tensor_parallel_size=2, distributed_executor_backend="ray", use_ray=True),
        {FORK: V1},
        "test_tensor_parallel.py",
        (HEADS,),
    ),
    Feature(
        "tensor parallelism by `--nnodes`",
        _parallel(tensor_parallel_size=2, distributed_executor_backend="mp", nnodes=2),
    ),
    Feature(
        "pipeline parallelism on one machine",
        _parallel(pipeline_parallel_size=2, distributed_executor_backend="mp"),
        _SHARED,
        "test_pipeline.py",
    ),
    Feature(
        "pipeline parallelism over machines",
        _parallel(pipeline_parallel_size=2, distributed_executor_backend="mp", nnodes=2),
    ),
    Feature(
        "data parallelism of a dense model",
        _parallel(data_parallel_size=2, data_parallel_size_local=2),
        {FORK: V1},
        "test_data_parallel.py",
        (HEADS,),
    ),
    Feature(
        "data parallelism of a mixture of experts",
        {
            **_parallel(data_parallel_size=2, data_parallel_size_local=2),
            "model_config.is_moe": True,
        },
    ),
    Feature("expert parallelism", _parallel(enable_expert_parallel=True)),
    Feature("context parallelism", _parallel(decode_context_parallel_size=2)),
    Feature("batch-sharded sampling", _parallel(enable_batch_sharded_sampling=True)),
    Feature("dual batch overlap", _parallel(use_ubatching=True)),
)

DRAFTS: tuple[Feature, ...] = (
    Feature("drafts by `ngram`", _drafts("ngram"), _EVERY_DRAFTER, "test_speculation.py", (WORDS,)),
    Feature("drafts by `draft_model`", _drafts("draft_model"), {FORK: V2}, "test_speculation.py",
            (HEADS, WORDS)),
    Feature("drafts by `eagle`", _drafts("eagle"), _EVERY_DRAFTER, "test_hidden_state_drafters.py",
            (WORDS,)),
    Feature("drafts by `eagle3`", _drafts("eagle3"), _EVERY_DRAFTER, "test_hidden_state_drafters.py",
            (WORDS,)),
    Feature("drafts by `mtp`", _drafts("mtp"), {HEADS: V2}, "test_hidden_state_drafters.py",
            (FORK, WORDS)),
    Feature("drafts by `dflash`", _drafts("dflash"), _EVERY_DRAFTER, "test_hidden_state_drafters.py",
            (WORDS,)),
    Feature("drafts by `medusa`, `suffix` and others", _drafts("medusa")),
)  # fmt: skip

MEMORY: tuple[Feature, ...] = (
    Feature("`--enable-lora`", {"lora_config": True}, {HEADS: BOTH}, "test_lora.py"),
    Feature("KV connectors", {"kv_transfer_config": True}, {HEADS: BOTH}, "test_kv_connectors.py"),
    Feature("`--cpu-offload-gb`", {"offload_config.uva.cpu_offload_gb": 1}, {HEADS: V1},
            "test_offloading.py"),
    Feature("prefetching of offloaded weights", {"offload_config.prefetch.offload_group_size": 1}),
    Feature("a KV cache of fp8", {"cache_config.cache_dtype": "fp8"}, allowed=(HEADS,)),
    Feature("weight transfer", {"weight_transfer_config": True}),
)  # fmt: skip

BASES: tuple[Feature, ...] = (
    Feature("a supported family in float32", {}, {**_SHARED, WORDS: BOTH, RESIDENT: BOTH},
            "test_families.py", (RAY,)),
    Feature("bfloat16", {"model_config.dtype": "torch.bfloat16"}, _SHARED, "test_bfloat16.py",
            (WORDS, RESIDENT, RAY)),
    Feature("compressed-tensors int8 and fp8", {"quant": "compressed-tensors"},
            {HEADS: V1, FORK: BOTH}, "test_quantised.py", (WORDS, RESIDENT, RAY)),
    Feature("AWQ, GPTQ, fp8, modelopt, online", {"quant": "auto_awq"},
            allowed=(HEADS, FORK, WORDS, RESIDENT, RAY)),
    Feature("other quantisation, such as bitsandbytes", {"quant": "bitsandbytes"},
            allowed=(HEADS, RESIDENT, RAY)),
    Feature("another architecture with a plain lm_head", {"architecture": "GPT2LMHeadModel"},
            {HEADS: V1}, "test_heads_only.py", (RESIDENT, RAY)),
    Feature("a mixture of experts", {"architecture": "MixtralForCausalLM", "model_config.is_moe": True},
            {HEADS: V1}, "test_heads_only.py"),
    Feature("a base that reads images",
            {"architecture": "Gemma3ForConditionalGeneration", "model_config.is_multimodal_model": True},
            {HEADS: BOTH}, "test_vision_language.py"),
    Feature("another tokenizer than the reward model's", None, {RESIDENT: V1}, "test_any_base.py",
            (RAY,), (HEADS, FORK, WORDS)),
    Feature("prompts as embeddings", {"model_config.enable_prompt_embeds": True}),
    Feature("pooling models", {"model_config.runner_type": "pooling"}),
)  # fmt: skip

GROUPS: Mapping[str, tuple[Feature, ...]] = {
    "Requests and servers": PLAIN,
    "More than one process": PARALLEL,
    "Speculative decoding": DRAFTS,
    "Memory, LoRAs, weights": MEMORY,
    "Bases": BASES,
}
