"""`--load-format pad`: loads the base with another of vLLM's loaders, then gives it a reward engine.

In: vLLM's config. Out: the model; its engine is registered in the Instance (instance.py). Runs in the worker,
before vLLM sizes its KV cache: memory that an engine allocates here is subtracted from the cache.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

import pad_vllm
from pad_vllm.adapter.adapter import Adapter
from pad_vllm.config import COMPILE_CACHE_KEY, PAD_KEY, PADConfig
from pad_vllm.engines import token_columns
from pad_vllm.engines.reward_engine import RewardEngine, ZeroRewards
from pad_vllm.engines.shared.instruction_stream import InstructionStream
from pad_vllm.engines.shared.learned_prefixes import LearnedPrefixes
from pad_vllm.engines.shared.model_fork import InstructedFork, fork_model
from pad_vllm.serving.start import config_checks, instruction_settings, served_adapters
from pad_vllm.serving.start.served_adapters import ADD_ADAPTER_RPC, REMOVE_ADAPTER_RPC
from pad_vllm.serving.worker.instance import Instance, get_or_create_instance, report_outcomes
from pad_vllm.serving.worker.loaded_embedding import loaded_embedding_sample
from pad_vllm.serving.worker.runtime_adapter_updates import add_adapter_methods
from pad_vllm.version import __version__
from pad_vllm.vllm_api.forward_metadata import last_token_indices
from pad_vllm.vllm_api.instruction_forward import InstructionForward
from pad_vllm.vllm_api.parallel_ranks import computes_logits, tp_rank_and_size
from pad_vllm.vllm_api.patches.attention_record import AttentionRecord, recorded_attention
from pad_vllm.vllm_api.patches.drafter_states import patch_drafter_hidden_states
from pad_vllm.vllm_api.patches.outcome_rpc import (
    OUTCOME_METHOD,
    add_outcome_method,
    add_worker_method,
)
from pad_vllm.vllm_api.vllm_names import (
    BaseModelLoader,
    VllmConfig,
    get_current_vllm_config,
    get_model_loader,
    init_logger,
    set_current_vllm_config,
    set_default_torch_dtype,
)

logger = init_logger(__name__)

Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """What the functions in _ENGINES make an engine of."""

    model: Any
    """The base with its weights; the engine changes it in place."""

    config: VllmConfig
    model_config: Any
    """vLLM's ModelConfig of the base."""

    pad: PADConfig
    adapter: Adapter
    """All served adapters, merged into one."""

    attention_record: AttentionRecord
    """How the base's attention layers were made."""

    instance: Instance


class PADModelLoader(BaseModelLoader):
    """Wraps the loader that `{"pad": {"load_format": ...}}` names ("auto" when it names none)."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        self._inner = self._loader("auto")

    def _loader(self, load_format: str) -> BaseModelLoader:
        return get_model_loader(dataclasses.replace(self.load_config, load_format=load_format))

    def download_model(self, model_config: Any) -> None:
        """Download the base's weights."""
        self._inner.download_model(model_config)

    def load_weights(self, model: nn.Module, model_config: Any) -> None:
        """Load weights into a model that may be forked already: parameter names are unchanged."""
        self._inner.load_weights(model, model_config)

    def get_all_weights(
        self, model_config: Any, model: nn.Module
    ) -> Iterable[tuple[str, torch.Tensor]]:
        """Names and tensors of a checkpoint, for a reload.

        Raises ValueError, before the model is changed, if they are not the adapter's backbone, and
        NotImplementedError for a load format that vLLM cannot reload.
        """
        config = get_current_vllm_config()
        pad = config_checks.pad_settings(config)
        inner: Any = self._loader(pad.load_format)
        if not hasattr(inner, "get_all_weights"):
            raise NotImplementedError(
                f"Model reloading with `{pad.load_format}` format: vLLM reloads with `auto`"
            )
        inner.download_model(model_config)
        adapter = served_adapters.load_served_adapters(
            pad, config.model_config, loras=config.lora_config is not None
        )
        config_checks.check_backbone(config, pad, adapter)
        if isinstance(rewards := getattr(model, "pad_rewards", None), RewardEngine):
            rewards.on_weights_changed()
        weights: Iterable[tuple[str, torch.Tensor]] = inner.get_all_weights(model_config, model)
        return weights

    def load_model(
        self, vllm_config: VllmConfig, model_config: Any, *args: Any, **kwargs: Any
    ) -> nn.Module:
        """Load the base, and change it in place into one that has a reward engine.

        A draft model, and the layers of a pipeline stage below the last, stay as vLLM loads them.

        Args:
            vllm_config: vLLM's config; the compile cache's key is written into its additional_config.
            model_config: of the model that is to be loaded.
            args: passed on to vLLM's loader.
            kwargs: likewise.

        Returns:
            The model.

        Raises:
            ValueError: PAD cannot serve this config, the adapter is broken, or the base is not its backbone.
            TimeoutError: with `ray`, no actor started in time; Ray's own errors may come too.
        """
        if _is_draft_model(vllm_config, model_config):
            # Its config may be vLLM's own copy for drafts, without logits processors: it is not checked.
            pad = PADConfig.from_additional_config(vllm_config.additional_config)
            draft_loader = self._loader(pad.load_format)
            return draft_loader.load_model(vllm_config, model_config, *args, **kwargs)
        pad = config_checks.pad_settings(vllm_config)
        adapter = served_adapters.load_served_adapters(
            pad, model_config, loras=vllm_config.lora_config is not None
        )
        served_adapters.require_one_digest(pad, adapter)
        rank, _ = tp_rank_and_size()
        if rank or not computes_logits():  # the first rank of the last stage logs the same
            logging.getLogger(pad_vllm.__name__).setLevel(logging.ERROR)
        # Written before the model is built: the compile cache's key knows neither the load format
        # nor the adapter, and two forks would share one artefact.
        fork_layer = instruction_settings.fork_layer(pad, adapter.config)
        key = f"{__version__}:{pad.engine}:{fork_layer}:{adapter.digest}"
        vllm_config.additional_config[PAD_KEY][COMPILE_CACHE_KEY] = key
        self._inner = self._loader(pad.load_format)
        with recorded_attention() as attention_record:
            model = self._inner.load_model(vllm_config, model_config, *args, **kwargs)
        # After the weights: before, a hub's model may not have been downloaded.
        read_embedding = partial(loaded_embedding_sample, model)
        config_checks.check_backbone(vllm_config, pad, adapter, read_embedding=read_embedding)
        if not computes_logits():
            _add_empty_worker_methods()
            return model
        make = _zero_engine if rank and pad.engine != "shared" else _ENGINES[pad.engine]
        instance = get_or_create_instance(vllm_config.instance_id)
        engine = make(
            LoadedModel(
                model=model,
                config=vllm_config,
                model_config=model_config,
                pad=pad,
                adapter=adapter,
                attention_record=attention_record,
                instance=instance,
            )
        )
        instance.register_engine(engine)
        # The model owns its engine, which the Instance holds weakly; and the Instance, if it comes first.
        model.pad_rewards, model.pad_instance = engine, instance
        add_outcome_method(report_outcomes)
        add_adapter_methods()
        return model


def _add_empty_worker_methods() -> None:
    """For a stage of pipeline parallelism below the last: without lm_head it samples and guides nothing."""
    for method in (OUTCOME_METHOD, ADD_ADAPTER_RPC, REMOVE_ADAPTER_RPC):
        add_worker_method(method, lambda *_: None)


def _is_draft_model(config: VllmConfig, model_config: Any) -> bool:
    """Whether this is a draft model, which vLLM loads with its target's loader; drafts stay unguided.

    Where drafts need no model (n-grams), the speculative config names the target as its draft model.
    """
    speculative = config.speculative_config
    return (
        speculative is not None
        and speculative.draft_model_config is model_config
        and speculative.target_model_config is not model_config
    )


_MAX_BLOCK_SIZE = 64
_LARGE_BLOCKS = (
    "PAD: a KV block has %d tokens, and an instruction that is shorter is repeated to fill it, which steers "
    "worse than two or three times (docs/instructions.md). Start with --block-size 32."
)

_CPU_LORA = (
    "PAD: on CPUs vLLM 0.32 gives requests without a LoRA the one in the last of its slots, while a request "
    "with a LoRA is in the batch (vllm-project/vllm, pull request 48421; not so from 0.33 on). Keep a slot "
    "free: --max-loras above the number of LoRAs that are served."
)


def _device_of(model: nn.Module) -> torch.device:
    """Where a model runs: parameters that vLLM offloads lie on the CPU, whatever that is."""
    devices = {parameter.device for parameter in model.parameters()}
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))


def _shared_engine(loaded: LoadedModel) -> RewardEngine:
    adapter = loaded.adapter
    device = _device_of(loaded.model)
    if loaded.config.lora_config is not None and device.type == "cpu":
        logger.warning(_CPU_LORA)
    fork_layer = instruction_settings.fork_layer(loaded.pad, adapter.config)
    is_forked = fork_layer < adapter.config.backbone.num_layers
    if is_forked and loaded.config.speculative_config is not None:
        patch_drafter_hidden_states()
    with (
        set_current_vllm_config(loaded.config),
        set_default_torch_dtype(loaded.model_config.dtype),
        device,
    ):
        instructed = _instructed_fork(loaded, fork_layer) if loaded.pad.instructions else None
        rewards = fork_model(loaded.model, adapter, loaded.attention_record, instructed)
    backbone = adapter.config.backbone
    logger.info(
        "PAD: forked %d of %d layers, dimensions %s",
        backbone.num_layers - fork_layer,
        backbone.num_layers,
        ", ".join(adapter.config.dimensions) or "none",
    )
    return rewards


def _instructed_fork(loaded: LoadedModel, fork_layer: int) -> InstructedFork:
    """The fork of a base whose requests may say what they prefer in a sentence."""
    limits = instruction_settings.instruction_limits(loaded.pad)
    learned = LearnedPrefixes()
    read = InstructionForward(loaded.model, loaded.config, limits.num_reserved_blocks, learned.find)
    cache = loaded.config.cache_config
    if cache.block_size > _MAX_BLOCK_SIZE:
        logger.warning(_LARGE_BLOCKS, cache.block_size)
    stream = InstructionStream(limits, cache, loaded.instance.failure_log, read, learned)
    stream.add_learned("", loaded.adapter.prefixes.values())
    return InstructedFork(fork_layer, stream)


_STAYS_AWAKE = (
    "PAD: the reward model does not sleep with the base: its weights and its KV cache stay on %s. With the "
    "ray engine they are in another process."
)


def _outside_of_vllms_pool(make: Callable[[], Made]) -> Made:
    """Call `make` in a thread of its own. With sleep mode vLLM loads models into a memory pool, whose content
    level 2 discards; PyTorch's pools are those of one thread.
    """
    with ThreadPoolExecutor(1, "pad-load") as thread:
        return thread.submit(make).result()


def _resident_engine(loaded: LoadedModel) -> RewardEngine:
    from pad_vllm.engines.prompt_reader import LONGEST_WAIT_S
    from pad_vllm.engines.resident_engine import ResidentRewards
    from pad_vllm.engines.reward_model.scorer_loader import make_reward_scorer

    pad, failure_log = loaded.pad, loaded.instance.failure_log
    device = torch.device(pad.device) if pad.device else _device_of(loaded.model)
    make = partial(
        make_reward_scorer,
        pad,
        loaded.adapter,
        failure_log,
        dtype=loaded.model_config.dtype,
        device=device,
    )
    if loaded.model_config.enable_sleep_mode:
        logger.warning(_STAYS_AWAKE, device)
        scorer = _outside_of_vllms_pool(make)
    else:
        scorer = make()
    rewards = ResidentRewards(
        config_checks.make_token_aligner(loaded.config, pad),
        scorer,
        failure_log,
        longest_prompt_wait_s=LONGEST_WAIT_S[pad.on_failure],
        require_own_weights=scorer.require_own_weights,
    )
    token_columns.attach_token_columns(loaded.model, rewards)
    logger.info("PAD: a separate reward model beside the base, %s", pad.adapter)
    return rewards


def _ray_engine(loaded: LoadedModel) -> RewardEngine:
    from pad_vllm.engines.prompt_reader import LONGEST_WAIT_S
    from pad_vllm.engines.ray_engine import RayRewardScorer
    from pad_vllm.engines.resident_engine import ResidentRewards

    pad, failure_log = loaded.pad, loaded.instance.failure_log
    scorer = RayRewardScorer(pad, loaded.adapter.digest, loaded.model_config.dtype, failure_log)
    rewards = ResidentRewards(
        config_checks.make_token_aligner(loaded.config, pad),
        scorer,
        failure_log,
        start_early=scorer.start_prefill,
        last_token_indices=last_token_indices,
        longest_prompt_wait_s=LONGEST_WAIT_S[pad.on_failure],
    )
    token_columns.attach_token_columns(loaded.model, rewards, rewards.on_forward_start)
    logger.info("PAD: %d reward models in Ray actors, %s", pad.ray_actors, pad.adapter)
    return rewards


def _zero_engine(_loaded: LoadedModel) -> RewardEngine:
    return ZeroRewards()


_ENGINES: dict[str, Callable[[LoadedModel], RewardEngine]] = {
    "shared": _shared_engine,
    "resident": _resident_engine,
    "ray": _ray_engine,
}
