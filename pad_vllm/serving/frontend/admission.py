"""The check of every request in the front end, and of the config when a front end is made.

In: a VllmConfig; then the parameters of each request. Out: the limits that guide it, or a ValueError, which
the client sees as HTTP 400. It loads the adapter, to refuse a broken one early, and never the model.
"""

from __future__ import annotations

from typing import Any

from pad_vllm.adapter.shape_checks import attention_kinds, require_boundary, require_shapes
from pad_vllm.params import ADAPTER, EXPLAIN, PREFERENCE, WEIGHTS, Limits, parse
from pad_vllm.serving.frontend import request_fields
from pad_vllm.serving.frontend.adapter_registry import Roster
from pad_vllm.serving.start import config_checks, reasoning_markers, served_adapters
from pad_vllm.vllm_api.patches.server_request_check import on_request
from pad_vllm.vllm_api.vllm_names import VllmConfig
from pad_vllm.wording import show


def front_end(config: VllmConfig) -> Admission:
    """Raises ValueError for a config PAD cannot serve; returns the check of requests."""
    pad = config_checks.settings(config)
    # The worker loads it again; loaded here too, a broken one is reported without a worker's traceback.
    adapter = served_adapters.load(pad)
    config_checks.check_backbone(config, pad, adapter, fetched=False)
    roster = Roster(pad, loras=config.lora_config is not None)
    if pad.engine == "shared":
        base = config.model_config.hf_config
        require_shapes(adapter, base)
        require_boundary(attention_kinds(base), adapter.config.fork_layer)
        on_request(request_fields.checked(lambda _: False))
    else:
        config_checks.check_reward_model(config, pad, adapter, weights=False)
        read = config_checks.reader(config, pad)
        on_request(
            request_fields.checked(lambda asked: not read.same or bool(asked.get(PREFERENCE)))
        )
    if pad.on_failure == "stop":
        config_checks.end_token(config)
    if pad.reasoning == "unguided":
        reasoning_markers.markers(config)

    return Admission(roster, config)


class Admission:
    """The check of one front end's requests."""

    def __init__(self, adapters: Roster, config: VllmConfig) -> None:
        self.adapters = adapters
        self._model_config = config.model_config

    def __call__(self, params: Any, lora: str | None = None) -> Limits | None:
        """See vllm_api.front_end.RequestCheck."""
        limits = self.adapters.limits
        guided = parse(params.extra_args, limits)
        if guided is None:
            return None
        if lora is not None:
            raise _under(lora, self._model_config.served_model_name)
        if guided.explain and params.n != 1:
            raise ValueError(
                f"{EXPLAIN} together with n {params.n}: one answer a request is explained; accepted: n 1. "
                f"Ask {params.n} times, or leave {EXPLAIN} out."
            )
        return limits.of(params.extra_args.get(ADAPTER))


def _under(lora: str, base: Any) -> ValueError:
    """base: the name, or names, that clients give the served model."""
    name = base if isinstance(base, str) else base[0]
    return ValueError(
        f"{WEIGHTS} together with the LoRA {show(lora)}: the reward model was trained on the base, whose "
        f"states are others under a LoRA; accepted: guided requests of the base. Ask for the model "
        f"{show(name)}, or leave the pad_ arguments out."
    )
