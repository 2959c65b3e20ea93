"""What PAD cannot serve yet, refused by name before an engine starts, each with the way out.

In: a VllmConfig and PAD's settings. Out: nothing, or a ValueError. Opens no adapter and no model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pad_vllm.adapter.backbone.model_families import SUPPORTED_ARCHITECTURES
from pad_vllm.config import LOAD_FORMAT, PAD_KEY, PADConfig
from pad_vllm.serving.start.quantized_bases import require_forkable_method
from pad_vllm.vllm_api.front_end_interface import uses_rust_front_end
from pad_vllm.vllm_api.parallel_ranks import last_stage_layers
from pad_vllm.vllm_api.quantization import kv_cache_dtype, quantization_method
from pad_vllm.vllm_api.vllm_names import VllmConfig
from pad_vllm.wording import listed

_USE = (
    "start with --load-format pad --logits-processors pad_vllm:PADLogitsProcessor "
    """--additional-config '{"pad": {"adapter": "PATH"}}', or with `pad-vllm serve`"""
)

_Refusal = tuple[str, Callable[[VllmConfig], Any], str]


def _stages(config: VllmConfig) -> bool:
    return config.parallel_config.pipeline_parallel_size > 1


REFUSED_BY_ALL: tuple[_Refusal, ...] = (
    (
        "pipeline parallelism beyond the processes of one machine",
        lambda c: _stages(c) and _spread(c.parallel_config),
        "drop --nnodes, and start with --distributed-executor-backend mp",
    ),
    (
        "pipeline together with data parallelism",
        lambda c: _stages(c) and c.parallel_config.data_parallel_size > 1,
        "drop one of the two sizes",
    ),
    (
        "pipeline parallelism with --enable-lora",
        lambda c: _stages(c) and c.lora_config is not None,
        "drop one of the two",
    ),
    (
        "pipeline parallelism with speculative decoding",
        lambda c: _stages(c) and c.speculative_config is not None,
        "drop one of the two",
    ),
    (
        "tensor parallelism beyond the processes of one machine",
        lambda c: c.parallel_config.tensor_parallel_size > 1 and _spread(c.parallel_config),
        "drop --nnodes, and start with --distributed-executor-backend mp",
    ),
    (
        "batch-sharded sampling",
        lambda c: getattr(c.parallel_config, "enable_batch_sharded_sampling", False),
        "drop --enable-batch-sharded-sampling; every rank needs the hidden states of all rows",
    ),
    (
        "expert parallelism",
        lambda c: getattr(c.parallel_config, "enable_expert_parallel", False),
        "drop --enable-expert-parallel",
    ),
    (
        "data parallelism of a mixture of experts",
        lambda c: c.parallel_config.data_parallel_size > 1 and c.model_config.is_moe,
        "run independent servers instead of --data-parallel-size",
    ),
    (
        "data parallelism beyond the engines of one server",
        lambda c: c.parallel_config.data_parallel_size > 1 and _apart(c.parallel_config),
        "keep all engines on one machine and --data-parallel-backend mp, or run independent servers",
    ),
    (
        "context parallelism",
        lambda c: (
            getattr(c.parallel_config, "decode_context_parallel_size", 1) > 1
            or getattr(c.parallel_config, "prefill_context_parallel_size", 1) > 1
        ),
        "drop the context parallel sizes",
    ),
    (
        "dual batch overlap",
        lambda c: getattr(c.parallel_config, "use_ubatching", False),
        "drop --enable-dbo and --ubatch-size",
    ),
    (
        "speculative decoding on vLLM's V1 runner",
        lambda c: c.speculative_config is not None and not getattr(c, "use_v2_model_runner", False),
        (
            "drop --speculative-config, or have the V2 runner (VLLM_USE_V2_MODEL_RUNNER=1); V1 would drop "
            "the processor without a word"
        ),
    ),
    (
        "KV connectors",
        lambda c: c.kv_transfer_config is not None,
        "drop --kv-transfer-config; its block hash does not know the adapter",
    ),
    (
        "elastic expert parallelism",
        lambda c: getattr(c.parallel_config, "enable_elastic_ep", False),
        "drop --enable-elastic-ep; workers that join later would not be guided",
    ),
    (
        "vLLM's Rust front end",
        lambda _: uses_rust_front_end(),
        "unset VLLM_USE_RUST_FRONTEND; it would let every pad_ argument through unchecked",
    ),
    (
        "pooling",
        lambda c: c.model_config.runner_type == "pooling",
        "serve a model that generates",
    ),
    (
        "diffusion models",
        lambda c: getattr(c.model_config, "is_diffusion", False),
        "serve a model that writes token by token; vLLM samples these without logits processors",
    ),
)
"""Features refused by name until they are tested: name, where it is on, the way out."""

_SHARED: tuple[_Refusal, ...] = (
    (
        "weight offloading",
        lambda c: _offloads(getattr(c, "offload_config", None)),
        "drop --cpu-offload-gb and --offload-group-size; offloaded layers would bypass the fork",
    ),
    (
        "weight transfer",
        lambda c: getattr(c, "weight_transfer_config", None) is not None,
        "drop --weight-transfer-config; an adapter belongs to the weights it was trained on",
    ),
    (
        "an implementation other than vLLM's own",
        lambda c: c.model_config.model_impl not in ("auto", "vllm"),
        "drop --model-impl",
    ),
)

_BESIDE: tuple[_Refusal, ...] = (
    (
        "pipeline parallelism",
        _stages,
        "drop --pipeline-parallel-size, or use the shared engine",
    ),
    (
        "--enable-lora",
        lambda c: c.lora_config is not None,
        "drop it and merge the LoRA into the base, or use the shared engine with heads alone",
    ),
    (
        "speculative decoding",
        lambda c: c.speculative_config is not None,
        "drop --speculative-config, or use the shared engine; a reward model would have to forget drafts",
    ),
    (
        "data parallelism",
        lambda c: c.parallel_config.data_parallel_size > 1,
        "run independent servers instead of --data-parallel-size, or use the shared engine",
    ),
    (
        "multimodal bases",
        lambda c: c.model_config.is_multimodal_model,
        "serve a base that reads text only",
    ),
    (
        "prompts as embeddings",
        lambda c: c.model_config.enable_prompt_embeds,
        "drop --enable-prompt-embeds",
    ),
    (
        "a base without a tokenizer",
        lambda c: c.model_config.skip_tokenizer_init,
        "drop --skip-tokenizer-init; the reward model reads the base's text",
    ),
)

_RESIDENT: tuple[_Refusal, ...] = (
    (
        "sleep mode",
        lambda c: c.model_config.enable_sleep_mode,
        "drop --enable-sleep-mode, or use the ray engine; the reward model would not wake up",
    ),
)

DRAFT_METHODS = ("ngram", "ngram_gpu", "draft_model")
"""Methods of speculative decoding that are served; V2 has one n-gram speculator for both names."""

REFUSED_BY_ENGINE = {"shared": _SHARED, "resident": (*_BESIDE, *_RESIDENT), "ray": _BESIDE}
"""Refused by one engine and not by all: `shared` forks the base's layers, the reward model of the others
needs the base's tokens and text.
"""


def asks_for_pad(config: VllmConfig) -> bool:
    """Whether anything in the config asks for PAD."""
    additional = config.additional_config
    return (
        config.load_config.load_format == LOAD_FORMAT
        or (isinstance(additional, dict) and PAD_KEY in additional)
        or _processors(config) > 0
    )


def require_supported(config: VllmConfig, pad: PADConfig) -> None:
    """Raises ValueError for a config that the engine of `pad` cannot serve."""
    if pad.adapters and pad.engine != "shared":
        raise ValueError(
            f"pad_vllm's {pad.engine} engine does not support several adapters yet; drop "
            f"{listed(pad.adapters)} from additional_config['pad']['adapters'], or use the shared engine."
        )
    for name, on, way_out in REFUSED_BY_ALL:
        if on(config):
            raise ValueError(f"pad_vllm does not support {name} yet; {way_out}.")
    for name, on, way_out in REFUSED_BY_ENGINE[pad.engine]:
        if on(config):
            raise ValueError(
                f"pad_vllm's {pad.engine} engine does not support {name} yet; {way_out}."
            )
    if pad.reasoning == "unguided" and not getattr(config, "use_v2_model_runner", False):
        raise ValueError(
            "pad_vllm leaves reasoning unguided on vLLM's V2 runner alone: have that one, or leave "
            "additional_config['pad']['reasoning'] out."
        )
    _require_tested_drafts(config.speculative_config)


def _spread(parallel: Any) -> bool:
    executor = getattr(parallel, "distributed_executor_backend", None)
    return executor not in (None, "mp") or getattr(parallel, "nnodes", 1) > 1


def _apart(parallel: Any) -> bool:
    here = parallel.data_parallel_size_local == parallel.data_parallel_size
    return not here or parallel.data_parallel_backend != "mp"


def _offloads(offload: Any) -> bool:
    return offload is not None and (
        offload.uva.cpu_offload_gb > 0 or offload.prefetch.offload_group_size > 0
    )


def _require_tested_drafts(speculative: Any) -> None:
    if speculative is None:
        return
    if speculative.method not in DRAFT_METHODS:
        raise ValueError(
            f"pad_vllm does not support speculative decoding by {speculative.method!r} yet; accepted: "
            f"{listed(DRAFT_METHODS)}. Set 'method' in --speculative-config to one of these, or drop it."
        )
    how = getattr(speculative, "rejection_sample_method", "standard")
    if how != "standard":
        raise ValueError(
            f"pad_vllm does not support rejection_sample_method {how!r} yet; accepted is 'standard', "
            "by which a token is as likely as without drafts: drop it from --speculative-config."
        )


def require_fork_in_last_stage(config: VllmConfig, fork: int) -> None:
    """Raises ValueError for a fork below the last stage of pipeline parallelism: between stages vLLM sends as
    many rows as it fed. The top, heads only, is in the last one whatever that has.
    """
    if not _stages(config):
        return
    stages, layers = config.parallel_config.pipeline_parallel_size, last_stage_layers(config)
    accepted = range(layers.start, layers.stop + 1)
    if fork not in accepted:
        raise ValueError(
            f"pad_vllm forks layers of the last pipeline stage alone; the adapter's fork layer is {fork}: "
            f"of {layers.stop} layers the last of {stages} stages has those from {layers.start} on; accepted "
            f"fork layers: {listed(map(str, accepted))} (at the top heads alone). Give that stage more "
            "layers by VLLM_PP_LAYER_PARTITION, drop --pipeline-parallel-size, or train with one of these."
        )


def require_forkable_base(config: VllmConfig) -> None:
    """Raises ValueError for a base whose layers `shared` cannot run twice; heads only need none of this."""
    _require_architecture(config)
    _require_no_lora(config)
    _require_plain_cache(config)
    require_forkable_method(quantization_method(config))


def _require_architecture(config: VllmConfig) -> None:
    unknown = [a for a in config.model_config.architectures if a not in SUPPORTED_ARCHITECTURES]
    if unknown:
        raise ValueError(
            f"pad_vllm's shared engine cannot fork {unknown[0]}; it serves "
            f"{', '.join(SUPPORTED_ARCHITECTURES)}. An adapter with its fork at the top, heads only, needs no fork."
        )


def _require_no_lora(config: VllmConfig) -> None:
    """vLLM wraps layers of exactly its own types, and maps LoRAs to the rows of one stream."""
    if config.lora_config is not None:
        raise ValueError(
            "pad_vllm does not fork a model with --enable-lora yet; drop it and merge the LoRA into the "
            "base, or use an adapter with heads only, which forks nothing."
        )


def _require_plain_cache(config: VllmConfig) -> None:
    """A second attention would store its keys by scales that were calibrated for the first."""
    given = kv_cache_dtype(config)
    own = str(config.model_config.dtype).removeprefix("torch.")
    if given not in ("auto", own):
        way_out = own if own in ("bfloat16", "float16") else "auto"
        raise ValueError(
            f"pad_vllm does not fork a model with a KV cache of type {given!r} yet; accepted is the model's "
            f"own, {own}: start with --kv-cache-dtype {way_out}, or use an adapter with heads only, which "
            "has no second cache."
        )


def require_pad_switched_on(config: VllmConfig) -> None:
    """Raises ValueError unless the config has load format `pad` and PAD's processor exactly once."""
    if config.load_config.load_format != LOAD_FORMAT:
        raise ValueError(
            f"pad_vllm needs load format 'pad', and this is "
            f"{config.load_config.load_format!r}; {_USE}."
        )
    count = _processors(config)
    if count != 1:
        raise ValueError(
            f"PADLogitsProcessor is given {count} times, and once is needed: without it requests "
            f"would not be guided, twice they would be guided twice; {_USE}."
        )


def _processors(config: VllmConfig) -> int:
    given = config.model_config.logits_processors or []
    return sum(
        processor.rsplit(":", 1)[-1].endswith("PADLogitsProcessor")
        if isinstance(processor, str)
        else any(base.__name__ == "PADLogitsProcessor" for base in processor.__mro__)
        for processor in given
    )
