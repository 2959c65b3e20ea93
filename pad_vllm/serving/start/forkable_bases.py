"""What a base must be so that the shared engine can fork it: run its top layers twice.

In: facts of the base and of vLLM's config. Out: nothing, or a ValueError with the way out. An adapter with
heads only forks nothing and needs none of this. `pad-vllm check` asks the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pad_vllm.adapter.backbone.model_families import SUPPORTED_ARCHITECTURES
from pad_vllm.wording import listed


def require_forkable_architecture(architectures: Sequence[str], base: str) -> None:
    """Raises ValueError unless every architecture is one whose fork is tested.

    architectures: as config.json lists them; base: the model's name, for a config that lists none.
    """
    unknown = [name for name in architectures if name not in SUPPORTED_ARCHITECTURES]
    if unknown or not architectures:
        raise ValueError(
            f"pad_vllm's shared engine cannot fork {listed(unknown) if unknown else base}; it serves "
            f"{listed(SUPPORTED_ARCHITECTURES)}. Use a base of these with an adapter trained on it, or an "
            "adapter with heads only (its fork is at the top) and no instructions, which forks nothing."
        )


def require_no_lora(*, enabled: bool) -> None:
    """Raises ValueError where vLLM's own LoRAs are enabled.

    vLLM wraps only layers of exactly its own types, and maps LoRAs to the rows of one stream.
    """
    if enabled:
        raise ValueError(
            "pad_vllm does not fork a model with --enable-lora yet; drop it and merge the LoRA into the "
            "base, or use an adapter with heads only, which forks nothing."
        )


def require_no_offloading(offload_config: Any) -> None:
    """Raises ValueError where vLLM's OffloadConfig keeps weights of layers in the host's memory.

    Layers then have a forward of their own on the instance, which runs in place of the fork's.
    """
    if offload_config is not None and offload_config.uva.cpu_offload_gb > 0:
        raise ValueError(
            "pad_vllm does not fork a model with --cpu-offload-gb, whose layers would bypass the fork; drop "
            "it, or use an adapter with heads only, which forks nothing."
        )


def require_no_kv_connector(*, enabled: bool) -> None:
    """Raises ValueError where KV blocks come from outside the engine, or go there.

    With heads only they are the base's own, whoever made them. Those of a fork depend on the adapter.
    """
    if enabled:
        raise ValueError(
            "pad_vllm does not fork a model with a KV connector (--kv-transfer-config, --kv-offloading-size) "
            "yet: blocks are found by a hash of their tokens, which does not include the adapter, so that "
            "those of another adapter or of a server without one would be loaded. Drop it, or use an adapter "
            "with heads only and no instructions, whose KV cache is the base's own."
        )


def require_plain_kv_cache(cache_dtype: str, model_dtype: Any) -> None:
    """Raises ValueError unless the KV cache stores the model's own dtype, a torch.dtype.

    The second attention of a forked layer would store its keys with scales calibrated for the first.
    """
    own = str(model_dtype).removeprefix("torch.")
    if cache_dtype not in ("auto", own):
        way_out = own if own in ("bfloat16", "float16") else "auto"
        raise ValueError(
            f"pad_vllm does not fork a model with a KV cache of type {cache_dtype!r} yet; accepted is the "
            f"model's own, {own}: start with --kv-cache-dtype {way_out}, or use an adapter with heads only, "
            "which has no second cache."
        )


def require_fork_in_last_stage(fork_layer: int, last_stage: range, num_stages: int) -> None:
    """Raises ValueError for a fork below the last stage of pipeline parallelism.

    vLLM sends as many rows to the next stage as it fed into the first, so that rows can be doubled only in
    the last stage. A fork at the top, heads only, is in the last stage however many layers that has.

    Args:
        fork_layer: the adapter's; the number of the model's layers means heads only.
        last_stage: decoder layers of the last stage, up to the model's last.
        num_stages: stages of pipeline parallelism, at least 2.
    """
    accepted = range(last_stage.start, last_stage.stop + 1)
    if fork_layer not in accepted:
        raise ValueError(
            "pad_vllm forks only layers of the last pipeline stage; the adapter's fork layer is "
            f"{fork_layer}: of {last_stage.stop} layers the last of {num_stages} stages has those from "
            f"{last_stage.start} on; accepted fork layers: {listed(map(str, accepted))} (at the top heads "
            "only). Give that stage more layers by VLLM_PP_LAYER_PARTITION, drop --pipeline-parallel-size, "
            "or train with one of these."
        )
