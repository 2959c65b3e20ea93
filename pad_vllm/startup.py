"""What must hold before an engine starts: run in the front end for an early, readable refusal, and
again in the worker that loads the model.

In: a VllmConfig. Out: PAD's settings and the limits of its requests, or a ValueError that says what
to do. It loads the adapter, to refuse a broken one early, and never the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pad_vllm.adapter import AdapterConfig, Backbone, load, read_config, require_backbone
from pad_vllm.compat import (
    SamplingParams,
    VllmConfig,
    init_logger,
    on_beam_search,
    rust_front_end,
)
from pad_vllm.config import KEY, PADConfig
from pad_vllm.engines.persrm import load as persrm
from pad_vllm.engines.shared.fork import ARCHITECTURES
from pad_vllm.fingerprint import fingerprint, local_checkpoint
from pad_vllm.params import PREFIX, Limits, parse
from pad_vllm.shapes import attention_kinds, require_boundary, require_shapes
from pad_vllm.tokens import Reader
from pad_vllm.wording import listed

logger = init_logger(__name__)

LOAD_FORMAT = "pad"
PROCESSOR = "pad_vllm:PADLogitsProcessor"
_USE = (
    "start with --load-format pad --logits-processors pad_vllm:PADLogitsProcessor "
    """--additional-config '{"pad": {"adapter": "PATH"}}', or with `pad-vllm serve`"""
)

_Refusal = tuple[str, Callable[[VllmConfig], Any], str]

REFUSED: tuple[_Refusal, ...] = (
    (
        "pipeline parallelism",
        lambda c: c.parallel_config.pipeline_parallel_size > 1,
        "drop --pipeline-parallel-size",
    ),
    (
        "tensor parallelism",
        lambda c: c.parallel_config.tensor_parallel_size > 1,
        "drop --tensor-parallel-size",
    ),
    (
        "data parallelism",
        lambda c: c.parallel_config.data_parallel_size > 1,
        "run independent servers instead of --data-parallel-size",
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
    ("--enable-lora", lambda c: c.lora_config is not None, "drop it; merge the LoRA into the base"),
    (
        "speculative decoding",
        lambda c: c.speculative_config is not None,
        "drop --speculative-config; vLLM's V1 runner would drop the processor without a word",
    ),
    (
        "KV connectors",
        lambda c: c.kv_transfer_config is not None,
        "drop --kv-transfer-config; its block hash does not know the adapter",
    ),
    (
        "a quantised KV cache",
        lambda c: c.cache_config.cache_dtype.startswith(("fp8", "nvfp4", "int8")),
        "drop --kv-cache-dtype",
    ),
    (
        "vLLM's Rust front end",
        lambda _: rust_front_end(),
        "unset VLLM_USE_RUST_FRONTEND; it would let every pad_ argument through unchecked",
    ),
    (
        "pooling",
        lambda c: c.model_config.runner_type == "pooling",
        "serve a model that generates",
    ),
)
"""Features refused by name until they are tested: name, where it is on, the way out."""


REFUSED_BESIDE: tuple[_Refusal, ...] = (
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
"""What an engine that must know the base's words cannot work with."""


def wants_pad(config: VllmConfig) -> bool:
    """Whether anything in the config asks for PAD."""
    additional = config.additional_config
    return (
        config.load_config.load_format == LOAD_FORMAT
        or (isinstance(additional, dict) and KEY in additional)
        or _processors(config) > 0
    )


def settings(config: VllmConfig) -> tuple[PADConfig, AdapterConfig]:
    """PAD's settings and what its adapter says; refuses a config that PAD cannot serve."""
    _require_wiring(config)
    pad = PADConfig.from_additional_config(config.additional_config)
    adapter = read_config(pad.adapter)
    for name, on, way_out in REFUSED:
        if on(config):
            raise ValueError(f"pad_vllm does not support {name} yet; {way_out}.")
    if pad.engine != "shared":
        for name, on, way_out in REFUSED_BESIDE:
            if on(config):
                raise ValueError(
                    f"pad_vllm's {pad.engine} engine does not support {name} yet; {way_out}."
                )
        return pad, adapter
    unknown = [a for a in config.model_config.architectures if a not in ARCHITECTURES]
    if unknown:
        raise ValueError(
            f"pad_vllm's shared engine cannot fork {unknown[0]}; it serves "
            f"{', '.join(ARCHITECTURES)}."
        )
    return pad, adapter


def check_backbone(
    config: VllmConfig, pad: PADConfig, adapter: AdapterConfig, *, fetched: bool = True
) -> None:
    """Refuse a served model that is not the adapter's, or, where the reward model has its own, that one;
    log what can only be warned of.

    fetched: whether vLLM has the weights by now. Before, a hub's model may not be here yet, and
    its weights are compared when they are.
    """
    if pad.engine != "shared":
        for warning in persrm.check(pad, load(pad.adapter)) if fetched else ():
            logger.warning("%s", warning)
        return
    model = config.model_config
    mark = None if pad.load_format == "dummy" else _fingerprint(config, fetched=fetched)
    served = Backbone.from_hf_config(model.hf_config, name=model.model, fingerprint=mark)
    warnings = require_backbone(adapter, served, allow_mismatch=pad.allow_backbone_mismatch)
    for warning in warnings if fetched else ():
        logger.warning("%s", warning)


def _fingerprint(config: VllmConfig, *, fetched: bool) -> str | None:
    model = config.model_config
    folder = local_checkpoint(model.model, model.revision, config.load_config.download_dir)
    try:
        return fingerprint(folder) if folder else None
    except ValueError:
        if fetched or Path(model.model).is_dir():
            raise
        return None


def limits(pad: PADConfig, adapter: AdapterConfig) -> Limits:
    """What requests may ask for."""
    return Limits(
        dimensions=adapter.dimensions,
        beta=adapter.beta,
        top_k=adapter.top_k,
        max_beta=pad.max_beta,
        max_top_k=pad.max_top_k,
        engine=pad.engine,
    )


def reader(config: VllmConfig, pad: PADConfig) -> Reader:
    """The base's tokens as the reward model's. Raises ValueError where one has no fast tokenizer."""
    from transformers import AutoTokenizer

    model = config.model_config
    base = AutoTokenizer.from_pretrained(
        model.tokenizer,
        revision=model.tokenizer_revision,
        trust_remote_code=model.trust_remote_code,
    )
    if pad.chat_template:
        base.chat_template = _template(pad.chat_template)
    ends = model.try_get_generation_config().get("eos_token_id") or ()
    return Reader(
        base,
        persrm.tokenizer_of(pad, read_config(pad.adapter)),
        ends=[ends] if isinstance(ends, int) else ends,
    )


def _template(given: str) -> str:
    """A chat template's text: vLLM takes a file's name or the text itself, and so do we."""
    if "{" in given or "\n" in given:
        return given
    try:
        return Path(given).read_text("utf-8")
    except OSError as error:
        raise ValueError(
            f"additional_config['pad']['chat_template'] is {given!r}, which is neither a template nor a "
            f"file that can be read ({error.strerror}). Name the file that --chat-template names."
        ) from None


def end_token(config: VllmConfig) -> int:
    """The base's end of sequence, for `"on_failure": "stop"`. Raises ValueError where it has none."""
    found = config.model_config.hf_text_config.eos_token_id
    token = found[0] if isinstance(found, list | tuple) and found else found
    if not isinstance(token, int):
        raise ValueError(
            f"on_failure is 'stop', and the base's config has eos_token_id {found!r}, which ends no "
            "answer. Set on_failure to 'unguided', or give the base's config its eos_token_id."
        )
    return token


def front_end(config: VllmConfig) -> Callable[[SamplingParams], None] | None:
    """The front end's check: refuses the start-up, or returns what every request goes through."""
    if not wants_pad(config):
        return None
    pad, adapter = settings(config)
    check_backbone(config, pad, adapter, fetched=False)
    accepted = limits(pad, adapter)
    # The worker loads it again: read here, a broken one is this process's own error, not the end
    # of a traceback from another.
    loaded = load(pad.adapter)
    if pad.engine == "shared":
        require_shapes(loaded, config.model_config.hf_config)
        require_boundary(attention_kinds(config.model_config.hf_config), adapter.fork_layer)
    else:
        persrm.check(pad, loaded)
        reader(config, pad)
    if pad.on_failure == "stop":
        end_token(config)
    on_beam_search(_refuse_beam_search)

    def admit(params: SamplingParams) -> None:
        parse(params.extra_args, accepted)

    return admit


def _refuse_beam_search(arguments: Mapping[str, Any] | None) -> None:
    ours = [name for name in arguments or () if name.startswith(PREFIX)]
    if ours:
        raise ValueError(
            f"use_beam_search together with {listed(ours)}: vLLM's beam search cannot be guided. "
            f"Drop use_beam_search (n and temperature give several answers), or {listed(ours)}."
        )


def _require_wiring(config: VllmConfig) -> None:
    """All three of load format, processor and settings, the processor once."""
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
        one.rsplit(":", 1)[-1].endswith("PADLogitsProcessor")
        if isinstance(one, str)
        else any(base.__name__ == "PADLogitsProcessor" for base in one.__mro__)
        for one in given
    )
