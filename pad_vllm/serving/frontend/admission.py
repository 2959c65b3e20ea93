"""The check of every request in the front end, and of the config when a front end is made.

In: a VllmConfig; then the parameters of each request. Out: the limits that guide it, or a ValueError, which
the client sees as HTTP 400. It loads the adapter, to refuse a broken one early, and never the model.
"""

from __future__ import annotations

from typing import Any

from pad_vllm.adapter.shape_checks import (
    attention_kinds,
    require_even_attention_split,
    require_lora_shapes,
)
from pad_vllm.params import ADAPTER, EXPLAIN, PREFERENCE, WEIGHTS, RequestLimits, parse_guidance
from pad_vllm.serving.frontend import request_fields
from pad_vllm.serving.frontend.adapter_registry import AdapterRegistry
from pad_vllm.serving.start import config_checks, reasoning_markers, served_adapters
from pad_vllm.vllm_api.patches.server_request_check import check_server_requests
from pad_vllm.vllm_api.vllm_names import VllmConfig
from pad_vllm.wording import short_repr


def make_admission(config: VllmConfig) -> Admission:
    """Raises ValueError for a config PAD cannot serve; returns the check of requests."""
    pad = config_checks.pad_settings(config)
    # The worker loads it again; loaded here too, a broken one is reported without a worker's traceback.
    adapter = served_adapters.load_served_adapters(pad)
    config_checks.check_backbone(config, pad, adapter, weights_fetched=False)
    roster = AdapterRegistry(pad, loras=config.lora_config is not None)
    if pad.engine == "shared":
        base = config.model_config.hf_config
        require_lora_shapes(adapter, base)
        require_even_attention_split(attention_kinds(base), adapter.config.fork_layer)
        check_server_requests(request_fields.request_field_check(lambda _: False))
    else:
        config_checks.reward_model_warnings(config, pad, adapter, runs_here=False)
        read = config_checks.token_reader(config, pad)
        check_server_requests(
            request_fields.request_field_check(
                lambda asked: not read.same_tokens or bool(asked.get(PREFERENCE))
            )
        )
    if pad.on_failure == "stop":
        config_checks.required_eos_token_id(config)
    if pad.reasoning == "unguided":
        reasoning_markers.find_reasoning_markers(config)

    return Admission(roster, config)


class Admission:
    """The check of one front end's requests."""

    def __init__(self, adapters: AdapterRegistry, config: VllmConfig) -> None:
        self.adapters = adapters
        self._model_config = config.model_config

    def __call__(self, params: Any, lora: str | None = None) -> RequestLimits | None:
        """See vllm_api.front_end.RequestCheck."""
        limits = self.adapters.limits
        guided = parse_guidance(params.extra_args, limits)
        if guided is None:
            return None
        if lora is not None:
            raise _under(lora, self._model_config.served_model_name)
        if guided.explain and params.n != 1:
            raise ValueError(
                f"{EXPLAIN} together with n {params.n}: one answer a request is explained; accepted: n 1. "
                f"Ask {params.n} times, or leave {EXPLAIN} out."
            )
        return limits.for_adapter(params.extra_args.get(ADAPTER))


def _under(lora: str, base: Any) -> ValueError:
    """base: the name, or names, that clients give the served model."""
    name = base if isinstance(base, str) else base[0]
    return ValueError(
        f"{WEIGHTS} together with the LoRA {short_repr(lora)}: the reward model was trained on the base, whose "
        f"states are others under a LoRA; accepted: guided requests of the base. Ask for the model "
        f"{short_repr(name)}, or leave the pad_ arguments out."
    )
