"""Admission: the check of every request in the front end, and of the config when a front end is made.

In: a VllmConfig; then the parameters of each request. Out: the RequestLimits that guide the request, or a
ValueError, which the client sees as HTTP 400. It loads the adapter, so that a broken one is refused early,
and never the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.backbone.weight_fingerprint import local_checkpoint
from pad_vllm.adapter.shape_checks import (
    attention_kinds,
    require_even_attention_split,
    require_lora_shapes,
    require_prefix_shapes,
)
from pad_vllm.argument_names import ADAPTER, EXPLAIN, PREFERENCE, USER
from pad_vllm.config import PADConfig
from pad_vllm.params import parse_guidance
from pad_vllm.request_limits import RequestLimits
from pad_vllm.serving.frontend.adapter_registry import AdapterRegistry
from pad_vllm.serving.frontend.dimension_jobs import DimensionJobs, make_dimension_jobs
from pad_vllm.serving.frontend.instruction_reader import InstructedRequest, InstructionReader
from pad_vllm.serving.frontend.request_fields import (
    NeedsConversationTurns,
    request_field_check,
    require_arguments_in_place,
)
from pad_vllm.serving.frontend.required_lora import require_trained_lora
from pad_vllm.serving.frontend.server_app import add_pad_routes, add_page
from pad_vllm.serving.start import (
    config_checks,
    eos_tokens,
    instruction_settings,
    reasoning_markers,
    served_adapters,
)
from pad_vllm.vllm_api.patches.answered_chats import listen_to_chats
from pad_vllm.vllm_api.patches.server_request_check import check_server_requests
from pad_vllm.vllm_api.patches.server_routes import extend_server_app
from pad_vllm.vllm_api.patches.user_request import UserRequest
from pad_vllm.vllm_api.vllm_names import LoRARequest, VllmConfig

if TYPE_CHECKING:
    from pad_vllm.serving.frontend.profile_admission import ProfileAdmission


def make_admission(config: VllmConfig) -> Admission:
    """Check a front end's config, and return the check of its requests.

    Raises ValueError for a config that PAD cannot serve.
    """
    pad = config_checks.pad_settings(config)
    # The worker loads it again; loaded here too, a broken one is reported without a worker's traceback.
    loras = config.lora_config is not None
    adapter = served_adapters.load_served_adapters(pad, config.model_config, loras=loras)
    config_checks.check_backbone(config, pad, adapter, weights_fetched=False)
    registry = AdapterRegistry(pad, adapter.config, config.model_config.hf_config, loras=loras)
    if pad.engine == "shared":
        _require_fitting_base(pad, adapter, config.model_config.hf_config)
        check_server_requests(request_field_check(lambda _: False), require_arguments_in_place)
    else:
        needs_conversation_turns = _check_separate_reward_model(config, pad, adapter)
        check_server_requests(
            request_field_check(needs_conversation_turns), require_arguments_in_place
        )
    jobs = make_dimension_jobs(config, pad)
    extend_server_app(add_pad_routes)
    if pad.page:
        extend_server_app(add_page)
    if pad.on_failure == "stop":
        eos_tokens.required_eos_token_id(config)
    if pad.reasoning == "unguided":
        reasoning_markers.find_reasoning_markers(config)
    return Admission(
        registry,
        config.model_config,
        _instruction_reader(config, pad),
        loras=loras,
        profiles=_profiles(config, pad, registry),
        jobs=jobs,
    )


def _profiles(
    config: VllmConfig, pad: PADConfig, registry: AdapterRegistry
) -> ProfileAdmission | None:
    """Users' profiles, None for a server without. Raises ValueError where they cannot be opened."""
    if not pad.profiles:
        for name in ("profile_tokens", "profile_reader", "learn_from_conversations"):
            if getattr(pad, name):
                raise ValueError(
                    f"{name} is given without profiles; add --profiles, or leave it out."
                )
        return None
    try:
        from pad_vllm.serving.frontend.profile_admission import open_profiles
    except ImportError as error:
        raise ValueError(
            f"profiles need packages that are not installed ({error}); pip install 'pad-vllm[profiles]'"
        ) from error
    model = config.model_config
    folder = local_checkpoint(model.model, model.revision, config.load_config.download_dir)
    profiles = open_profiles(pad, registry.limits.dimensions, str(folder or model.model))
    if profiles.learner is not None:
        listen_to_chats(profiles.learner.hear)
    return profiles


def _instruction_reader(config: VllmConfig, pad: PADConfig) -> InstructionReader | None:
    """What makes token ids of instructions, None for a server that takes none."""
    if not pad.instructions:
        return None
    return InstructionReader(
        config_checks.base_tokenizer(config, pad),
        instruction_settings.instruction_limits(pad),
        config.parallel_config,
    )


def _require_fitting_base(pad: PADConfig, adapter: Adapter, base: Any) -> None:
    """Raises AdapterError where the adapter's matrices or its fork do not fit the base's config."""
    require_lora_shapes(adapter, base)
    require_prefix_shapes(adapter, base)
    fork_layer = instruction_settings.fork_layer(pad, adapter.config)
    require_even_attention_split(attention_kinds(base), fork_layer)


def _check_separate_reward_model(
    config: VllmConfig, pad: PADConfig, adapter: Adapter
) -> NeedsConversationTurns:
    """Check the reward model of `resident` or `ray` and its tokenizer.

    It needs a conversation's turns where it has another tokenizer, or a preference text in its prompt.
    """
    config_checks.reward_model_warnings(
        pad,
        adapter,
        max_model_len=config.model_config.max_model_len,
        dtype=config.model_config.dtype,
        runs_here=False,
    )
    same_tokens = config_checks.make_token_aligner(config, pad).same_tokens
    return lambda arguments: not same_tokens or bool(arguments.get(PREFERENCE))


class Admission:
    """The check of one front end's requests; see vllm_api.patches.front_end_checks.RequestCheck."""

    def __init__(
        self,
        adapters: AdapterRegistry,
        model_config: Any,
        instructions: InstructionReader | None = None,
        *,
        loras: bool = False,
        profiles: ProfileAdmission | None = None,
        jobs: DimensionJobs | None = None,
    ) -> None:
        self.adapters, self._instructions = adapters, instructions
        self.profiles, self.jobs = profiles, jobs
        self._model_config, self._loras = model_config, loras

    @property
    def takes_instructions(self) -> bool:
        """See RequestCheck."""
        return self._instructions is not None

    def __call__(
        self, params: Any, lora: LoRARequest | None = None
    ) -> RequestLimits | InstructedRequest | UserRequest | None:
        """What guides a request: see RequestCheck.

        params: its SamplingParams; lora: vLLM's LoRA that it asks for.
        """
        arguments = params.extra_args or {}
        if self.profiles is None or USER not in arguments:
            return self._guidance(arguments, params, lora)
        named = self.profiles.with_weights(arguments)
        unguided = self.profiles.without_guidance(named, self.adapters.limits)
        if unguided is not None:
            return unguided
        return replace(named, guidance=self._guidance(named.arguments, params, lora))

    def _guidance(
        self, arguments: Mapping[str, Any], params: Any, lora: LoRARequest | None
    ) -> RequestLimits | InstructedRequest | None:
        """The limits of the adapter that guides a request, with its instruction; None for a request without
        PAD's arguments. Raises ValueError for a request that is refused.

        Args:
            arguments: its extra_args, with weights in place of a user.
            params: its SamplingParams.
            lora: vLLM's LoRA that it asks for.
        """
        limits = self.adapters.limits
        guidance = parse_guidance(arguments, limits)
        if guidance is None:
            return None
        if guidance.explain and params.n != 1:
            raise ValueError(
                f"{EXPLAIN} together with n {params.n}: one answer a request is explained; accepted: n 1. "
                f"Send the request {params.n} times, or leave {EXPLAIN} out."
            )
        limits = limits.for_adapter(arguments.get(ADAPTER))
        if self._loras:
            require_trained_lora(limits.merged_lora, lora, self.base_name)
        if self._instructions is not None and guidance.preference:
            return self._instructions.admit(guidance.preference, limits)
        return limits

    @property
    def base_name(self) -> str:
        """The first name by which clients ask for the base."""
        names: str | list[str] = self._model_config.served_model_name
        return names if isinstance(names, str) else names[0]
