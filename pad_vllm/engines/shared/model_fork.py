"""Forks a loaded vLLM model in place: two residual streams from the fork layer up, one set of weights.

    rows [0, T)   the base, adapter off        rows [T, 2T)   the reward trunk, LoRA on

The first forked layer doubles the rows; every forked layer doubles the positions; attention splits the
halves and gives the second a KV cache of its own (the layer name plus a suffix, so that vLLM allocates it in
the same block table); linear layers add the LoRA to the second half. The model's forward then returns [T,
2H]. Modules keep their objects, parameters and names: only their classes change. With heads only no layer
changes: the model's hidden state is both streams, [T, H].
In: a model, an adapter, the record of how vLLM made its attention layers. Knows no requests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.lora_modules import packed_modules
from pad_vllm.adapter.shape_checks import require_even_attention_split
from pad_vllm.engines.override_methods import mix_in
from pad_vllm.engines.shared import lora_shards
from pad_vllm.engines.shared.instruction_stream import InstructionStream
from pad_vllm.engines.shared.lm_head_rows import ForkError, plain_lm_head_rows
from pad_vllm.engines.shared.row_independence_check import require_row_independence
from pad_vllm.engines.shared.shared_rewards import SharedRewards
from pad_vllm.guidance import HeadTensors
from pad_vllm.vllm_api.patches.attention_record import AttentionRecord
from pad_vllm.vllm_api.prefixed_attention import (
    PREFIXED_BACKENDS,
    PrefixTable,
    prefixed_backend,
)
from pad_vllm.vllm_api.quantization import is_quantized
from pad_vllm.vllm_api.removed_requests import state_class_with_removals
from pad_vllm.vllm_api.vllm_names import Attention
from pad_vllm.wording import listed


class InstructedFork(NamedTuple):
    """Where a model is forked that reads instructions, and what its rows read."""

    fork_layer: int
    stream: InstructionStream


REWARD_CACHE_SUFFIX = ".pad_reward"
"""Appended to a forked attention layer's name; vLLM gives each name a KV cache."""


def fork_model(
    model: Any,
    adapter: Adapter,
    record: AttentionRecord,
    instructions: InstructedFork | None = None,
) -> SharedRewards:
    """Fork a loaded model at the adapter's layer, or where it reads instructions.

    Args:
        model: a causal language model of vLLM; its modules change class in place.
        adapter: made for the model's backbone.
        record: constructor arguments of the model's attention layers; not read where nothing is forked.
        instructions: the fork layer for an adapter with heads only, and what its reward stream reads.

    Returns:
        The engine to which the model hands its hidden states; the model owns it, as `pad_rewards`.

    Raises:
        ForkError: a part of the model cannot be forked.
        AdapterError: the fork layer does not fit the model.
    """
    rows = plain_lm_head_rows(model, adapter.config.backbone)
    device = rows.weight.device
    fork_layer, stream = instructions or (adapter.config.fork_layer, None)
    is_forked = fork_layer < adapter.config.backbone.num_layers
    if is_forked:
        _fork_layers(model.model.layers, fork_layer, adapter, record, device, stream)
    # A weak reference: the model owns its engine.
    register = partial(_register_head_buffers, ref(model))
    heads = adapter.heads.on_device(device)
    model.pad_rewards = rewards = SharedRewards(heads, rows, register, instructions=stream)
    if not is_forked:
        mix_in(model, HeadsOnlyModel)
    else:
        mix_in(model, ForkedModel if stream is None else InstructedModel)
    return rewards


def _register_head_buffers(model: Callable[[], Any], heads: HeadTensors) -> None:
    """Make the heads buffers of the model: vLLM restores buffers when a sleeping model wakes up."""
    for letter, head in heads._asdict().items():
        model().register_buffer(f"pad_head_{letter}", head, persistent=False)


def _fork_layers(
    layers: Any,
    fork_layer: int,
    adapter: Adapter,
    record: AttentionRecord,
    device: torch.device,
    table: PrefixTable | None,
) -> None:
    # A stage of pipeline parallelism has only some layers; the front end checks the config instead.
    if all(hasattr(layer, "self_attn") for layer in layers):
        require_even_attention_split(
            [layer.self_attn.attn.sliding_window for layer in layers], fork_layer
        )
    for index in range(fork_layer, len(layers)):
        _fork_attention(layers[index].self_attn.attn, index, record, table)
        _add_layer_lora(layers[index], index, adapter, device)
        mix_in(layers[index], FirstForkedLayer if index == fork_layer else ForkedLayer)


def _fork_attention(
    attention: Any, index: int, record: AttentionRecord, table: PrefixTable | None
) -> None:
    if type(attention) is not Attention or attention.kv_sharing_target_layer_name is not None:
        raise ForkError(
            f"layer {index} has attention of type {type(attention).__name__} or shares its KV "
            "cache; the shared engine forks plain vLLM Attention only"
        )
    backend = None if table is None else _prefixed_backend(attention, index)
    attention.reward = record.copy_attention(attention, suffix=REWARD_CACHE_SUFFIX, backend=backend)
    if table is not None:
        attention.reward.pad_prefix_table = table
    attention.__class__ = ForkedAttention


def _prefixed_backend(attention: Any, index: int) -> Any:
    """The backend of a second attention that reads instructions; ForkError where there is none."""
    backend = attention.get_attn_backend()
    name = backend.get_name()
    if name not in PREFIXED_BACKENDS:
        raise ForkError(
            f"layer {index} has the attention backend {name}, which pad_vllm has not tested with "
            f"instructions; accepted are {listed(PREFIXED_BACKENDS)}. Choose one: --attention-backend"
        )
    if attention.sliding_window is not None:
        raise ForkError(
            f"layer {index} has sliding-window attention, which would lose sight of an instruction. Fork "
            "above such layers (fork_layer in additional_config['pad']), or serve another base"
        )
    return prefixed_backend(backend)


def _add_layer_lora(layer: Any, index: int, adapter: Adapter, device: torch.device) -> None:
    """Check the linear layers of decoder layer `index`, and add the adapter's LoRA to those that have one."""
    for parent in ("self_attn", "mlp"):
        for name, modules in packed_modules(parent).items():
            linear = getattr(getattr(layer, parent), name)
            if is_quantized(linear):
                full_name = f"{name} of layer {index}"
                require_row_independence(linear, full_name, linear.params_dtype, device)
            pairs = [adapter.lora.weights.get((index, module)) for module in modules]
            if any(pairs):
                lora_shards.add_lora_shard(linear, pairs, adapter.lora.scaling, device)


class ForkedAttention(Attention):
    """Attention over two halves of the rows, [2T, ...], each with its own KV cache."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Attend in both streams.

        Args:
            query: [2T, heads * width].
            key: [2T, KV heads * width].
            value: [2T, KV heads * width].
            *args: passed on.
            **kwargs: passed on.

        Returns:
            [2T, heads * width].
        """
        half = query.shape[0] // 2
        base = super().forward(query[:half], key[:half], value[:half], *args, **kwargs)
        reward = self.reward(query[half:], key[half:], value[half:], *args, **kwargs)
        return torch.cat((base, reward))


class ForkedLayer:
    """Mixin for a decoder layer: runs over both streams, [2T, H]; the T positions are repeated."""

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, **kwargs: Any
    ) -> Any:
        """Run the layer on both streams.

        Args:
            positions: [T] int64, or [3, T] with M-RoPE.
            hidden_states: [2T, H].
            residual: [2T, H], or None where the layer before has none.
            **kwargs: passed on.

        Returns:
            What the layer returns for 2T rows.
        """
        # The last dimension: M-RoPE positions are [3, T].
        positions = torch.cat((positions, positions), dim=-1)
        return super().forward(positions, hidden_states, residual, **kwargs)  # type: ignore[misc]


class FirstForkedLayer(ForkedLayer):
    """Mixin for the first forked layer: takes one stream [T, H], returns both, [2T, H]."""

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, **kwargs: Any
    ) -> Any:
        """Double the rows, and run the layer on both streams.

        Args:
            positions: [T] int64, or [3, T] with M-RoPE.
            hidden_states: [T, H].
            residual: [T, H], or None where the layer before has none.
            **kwargs: passed on.

        Returns:
            What the layer returns for 2T rows.
        """
        hidden_states = torch.cat((hidden_states, hidden_states))
        residual = None if residual is None else torch.cat((residual, residual))
        return super().forward(positions, hidden_states, residual, **kwargs)


class WithSharedRewards:
    """Mixin for a causal language model: hands its engine the hidden states whose logits are computed."""

    pad_rewards: SharedRewards

    def pad_streams(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of what the model's forward returned -> h_B and h_T, each [R, H]."""
        raise NotImplementedError

    def compute_logits(self, hidden_states: Tensor) -> Any:
        """Rows of what the model's forward returned -> the base's logits of them."""
        h_B, h_T = self.pad_streams(hidden_states)
        try:
            self.pad_rewards.store_states(h_B, h_T)
        except Exception:  # noqa: BLE001, it would end the server; rewards() then returns None
            self.pad_rewards.discard_states()
        return super().compute_logits(h_B.contiguous())  # type: ignore[misc]


class HeadsOnlyModel(WithSharedRewards):
    """Mixin for a model that is not forked: its hidden state is both streams, h_T = h_B."""

    def pad_streams(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """[R, H] -> the same tensor twice."""
        return hidden_states, hidden_states


class ForkedModel(WithSharedRewards):
    """Mixin for a model with forked layers: forward returns [T, 2H], base and reward side by side."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Arguments as the model takes them -> [T, 2H]; where a drafter reads inner layers too (EAGLE3,
        DFlash), also their hidden states, [T, H] each, of the base stream alone.
        """
        returned = super().forward(*args, **kwargs)  # type: ignore[misc]
        hidden, inner = returned if isinstance(returned, tuple) else (returned, None)
        streams = torch.cat(hidden.chunk(2), dim=-1)
        if inner is None:
            return streams
        # Those below the fork have T rows, those above 2T, the base's first.
        return streams, [layer[: len(streams)] for layer in inner]

    def pad_streams(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """[R, 2H] -> its halves."""
        h_B, h_T = hidden_states.chunk(2, dim=-1)
        return h_B, h_T


class InstructedModel(ForkedModel):
    """Mixin for a model whose reward stream reads instructions."""

    def get_model_state_cls(self) -> type:
        """V2's, by which requests that leave free their instructions."""
        return state_class_with_removals()

    def pad_on_slot_freed(self, slot: int) -> None:
        """V2: the request in a batch slot ended."""
        self.pad_rewards.on_slot_freed(slot)
