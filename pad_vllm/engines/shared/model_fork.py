"""Forks a loaded vLLM model in place: two residual streams from the fork layer up, one set of weights.

    rows [0, T)   the base, adapter off        rows [T, 2T)   the reward trunk, LoRA on

The first forked layer doubles the rows; every forked layer doubles the positions; attention splits
the halves and gives the second a KV cache of its own (the layer name plus a suffix, so vLLM allocates
it in the same block table); linear layers add the LoRA to the second half. The model's forward then
returns [T, 2H]. Modules keep objects, parameters and names: only their classes change. A fork at the top
forks no layer and asks nothing of them: the model's hidden state is both streams, [T, H].
In: a model, an adapter, vLLM's record of how its attention layers were made. Knows no requests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.lora_modules import packed_modules
from pad_vllm.adapter.shape_checks import require_even_attention_split
from pad_vllm.engines.override_methods import mix_in
from pad_vllm.engines.shared import lora_shards
from pad_vllm.engines.shared.adapter_heads import HeadTensors, heads_on_device
from pad_vllm.engines.shared.lm_head_rows import ForkError, plain_lm_head_rows
from pad_vllm.engines.shared.row_independence_check import require_row_independence
from pad_vllm.engines.shared.shared_rewards import SharedRewards
from pad_vllm.vllm_api.patches.attention_record import AttentionRecord
from pad_vllm.vllm_api.quantization import is_quantized
from pad_vllm.vllm_api.vllm_names import Attention

REWARD_CACHE_SUFFIX = ".pad_reward"


def fork_model(model: Any, adapter: Adapter, record: AttentionRecord) -> SharedRewards:
    """Fork `model` at the adapter's layer; returns the engine that receives its hidden states.

    Raises ForkError, or AdapterError for a fork layer that does not fit.
    """
    embedding = plain_lm_head_rows(model, adapter.config.backbone)
    if not adapter.config.heads_only:
        _fork_layers(model.model.layers, adapter, record, embedding.weight.device)
    own = partial(_own, ref(model))  # the model owns its engine
    A, B, C = heads_on_device(adapter.heads, embedding.weight.device)
    model.pad_rewards = rewards = SharedRewards(A, B, embedding, C, own)
    mix_in(model, HeadsOnlyModel if adapter.config.heads_only else ForkedModel)
    return rewards


def _own(model: Callable[[], Any], heads: HeadTensors) -> None:
    """As buffers of the model: those are what vLLM keeps of a model that sleeps."""
    for letter, head in zip("ABC", heads, strict=True):
        model().register_buffer(f"pad_head_{letter}", head, persistent=False)


def _fork_layers(
    layers: Any, adapter: Adapter, record: AttentionRecord, device: torch.device
) -> None:
    fork = adapter.config.fork_layer
    # On a stage of pipeline parallelism those below it are elsewhere; the front end asks the config.
    if all(hasattr(layer, "self_attn") for layer in layers):
        require_even_attention_split(
            [layer.self_attn.attn.sliding_window for layer in layers], fork
        )
    for index in range(fork, len(layers)):
        _fork_attention(layers[index].self_attn.attn, index, record)
        _fork_linear(layers[index], index, adapter, device)
        mix_in(layers[index], FirstForkedLayer if index == fork else ForkedLayer)


def _fork_attention(attention: Any, index: int, record: AttentionRecord) -> None:
    if type(attention) is not Attention or attention.kv_sharing_target_layer_name is not None:
        raise ForkError(
            f"layer {index} has attention of type {type(attention).__name__} or shares its KV "
            "cache; the shared engine forks plain vLLM Attention only"
        )
    attention.reward = record.copy_attention(attention, suffix=REWARD_CACHE_SUFFIX)
    attention.__class__ = ForkedAttention


def _fork_linear(layer: Any, index: int, adapter: Adapter, device: torch.device) -> None:
    for parent in ("self_attn", "mlp"):
        for name, modules in packed_modules(parent).items():
            linear = getattr(getattr(layer, parent), name)
            if is_quantized(linear):
                place = f"{name} of layer {index}"
                require_row_independence(linear, place, linear.params_dtype, device)
            _add_lora(linear, [(index, module) for module in modules], adapter, device)


def _add_lora(
    linear: Any, keys: list[tuple[int, str]], adapter: Adapter, device: torch.device
) -> None:
    pairs = [adapter.lora.weights.get(key) for key in keys]
    if any(pairs):
        lora_shards.add_lora_shard(linear, pairs, adapter.lora.scaling, device)


class ForkedAttention(Attention):
    """Attention over two halves of the rows [2T, ...], each with its own KV cache."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        half = query.shape[0] // 2
        base = super().forward(query[:half], key[:half], value[:half], *args, **kwargs)
        reward = self.reward(query[half:], key[half:], value[half:], *args, **kwargs)
        return torch.cat((base, reward))


class ForkedLayer:
    """A decoder layer over both streams, [2T, H]; the T positions are repeated."""

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, **kwargs: Any
    ) -> Any:
        # The last dimension: M-RoPE positions are [3, T].
        positions = torch.cat((positions, positions), dim=-1)
        return super().forward(positions, hidden_states, residual, **kwargs)  # type: ignore[misc]


class FirstForkedLayer(ForkedLayer):
    """The first forked layer: takes one stream [T, H], returns both [2T, H]."""

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, **kwargs: Any
    ) -> Any:
        hidden_states = torch.cat((hidden_states, hidden_states))
        residual = None if residual is None else torch.cat((residual, residual))
        return super().forward(positions, hidden_states, residual, **kwargs)


class HeadsOnlyModel:
    """The causal language model: hands over the hidden states of the rows whose logits are computed."""

    pad_rewards: SharedRewards

    def pad_streams(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """What its forward gave -> h_B and h_T, each [R, H]."""
        return hidden_states, hidden_states

    def compute_logits(self, hidden_states: Tensor) -> Any:
        h_B, h_T = self.pad_streams(hidden_states)
        try:
            self.pad_rewards.store_states(h_B, h_T)
        except Exception:  # noqa: BLE001, it would end the server; rewards() then has nothing to say
            self.pad_rewards.discard_states()
        return super().compute_logits(h_B.contiguous())  # type: ignore[misc]


class ForkedModel(HeadsOnlyModel):
    """The same with two streams: [T, 2H] out of its forward, logits from the first half of it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = super().forward(*args, **kwargs)  # type: ignore[misc]
        return torch.cat(hidden.chunk(2), dim=-1)

    def pad_streams(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """[R, 2H] -> its halves."""
        h_B, h_T = hidden_states.chunk(2, dim=-1)
        return h_B, h_T
