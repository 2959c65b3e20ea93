"""The forked backbone on packed tokens: lower layers once, top layers as [base; reward], one set of weights.

With heads only there is one stream: one pass, one cache, h_T = h_B.
In: token ids, positions and an AttentionBatch. Out: h_B and h_T of the tokens asked for. It holds the KV
cache's tensors; kv_blocks.py and cached_row.py know which row has which blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.backbone.model_families import SUPPORTED_MODEL_TYPES
from pad_vllm.adapter.lora_modules import LINEAR_MODULES
from pad_vllm.engines import reward_lora
from pad_vllm.engines.reward_model import packed_cpu_linear
from pad_vllm.engines.reward_model.cache_capacity import BLOCK_SIZE, block_bytes, head_dim
from pad_vllm.engines.reward_model.paged_attention import ATTENTION_NAME, AttentionBatch
from pad_vllm.persrm import decoder_slice
from pad_vllm.wording import listed


class DecoderError(ValueError):
    """The reward model cannot run; the message says why, what is accepted and the way out."""


class ForkedDecoder:
    """A backbone with its adapter's LoRA and a KV cache, in inference only."""

    def __init__(
        self,
        path: str | Path,
        adapter: Adapter,
        *,
        dtype: torch.dtype,
        device: torch.device,
        cache_bytes: int,
    ) -> None:
        """Load the weights, fork the layers and allocate the whole KV cache.

        Args:
            path: folder of the adapter's backbone.
            adapter: its LoRA and fork layer are used, not its heads.
            dtype: type of weights, activations and cache.
            device: where all of it lies.
            cache_bytes: the cache takes at most so many bytes.

        Raises:
            DecoderError: the model family is not supported, or the cache is too small.
        """
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=ATTENTION_NAME,
            use_safetensors=True,
            trust_remote_code=False,
        ).to(device)
        require_supported_family(model.config)
        model.requires_grad_(False).eval()
        self.device, self.dtype = device, dtype
        self.fork_layer, num_layers = adapter.config.fork_layer, len(model.model.layers)
        self.lm_head_weight: Tensor = model.lm_head.weight
        """[V, H], e in the rule."""
        self.max_positions = int(model.config.max_position_embeddings)
        self._embed = model.model.embed_tokens
        heads_only = adapter.config.heads_only
        self._lower = decoder_slice(model.model, 0, self.fork_layer, norm=heads_only)
        self._upper = (
            None
            if heads_only
            else decoder_slice(model.model, self.fork_layer, num_layers, norm=True)
        )
        packed_cpu_linear.pack_linears(model.model.layers)
        _add_lora(model.model.layers, adapter, dtype, device)
        self.num_blocks = self._fitting_blocks(model.config, cache_bytes)
        self.kv_caches = self._allocate_caches(model.config, num_layers)
        """Layer -> [2, blocks, BLOCK_SIZE, S * KV heads, head width], S the layer's streams."""

    def _fitting_blocks(self, config: Any, cache_bytes: int) -> int:
        bytes_per_block = block_bytes(config, self.fork_layer, self.dtype)
        if cache_bytes < 2 * bytes_per_block:
            raise DecoderError(
                f"the reward model's KV cache is {cache_bytes} bytes, and two blocks of {BLOCK_SIZE} "
                f"tokens take {2 * bytes_per_block}. Raise cache_gib in additional_config['pad']."
            )
        return cache_bytes // bytes_per_block

    def _allocate_caches(self, config: Any, num_layers: int) -> dict[int, Tensor]:
        kv_heads, width = config.num_key_value_heads, head_dim(config)
        caches = {}
        for layer in range(num_layers):
            streams = 1 if layer < self.fork_layer else 2
            shape = (2, self.num_blocks, BLOCK_SIZE, kv_heads * streams, width)
            caches[layer] = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return caches

    def forward(
        self, ids: Tensor, positions: Tensor, batch: AttentionBatch, output_indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run one pass over T packed tokens; their keys and values are in the cache afterwards.

        Args:
            ids: [T] int64; an id beyond the vocabulary is read as its last one.
            positions: [T] int64.
            batch: slots and groups of the T tokens.
            output_indices: [n] int64, indices of the tokens whose hidden states are returned.

        Returns:
            h_B and h_T, each [n, H] float32; the same tensor with heads only.
        """
        if self.device.type == "cpu":
            padding = packed_cpu_linear.rounded_row_count(len(ids)) - len(ids)
            ids, positions = (
                torch.nn.functional.pad(tensor, (0, padding)) for tensor in (ids, positions)
            )
        arguments: dict[str, Any] = {"use_cache": False, "pad_batch": batch}
        arguments["position_ids"] = positions.unsqueeze(0)
        # A base of the same tokenizer may have more rows than tokens, and more than this model.
        known_ids = ids.clamp(max=len(self.lm_head_weight) - 1)
        hidden = self._embed(known_ids.unsqueeze(0))
        if self.fork_layer:
            hidden = self._lower(inputs_embeds=hidden, **arguments).last_hidden_state
        if self._upper is None:
            h_B = hidden[0].index_select(0, output_indices).float()
            return h_B, h_B
        streams = hidden.expand(2, -1, -1)
        streams = self._upper(inputs_embeds=streams, **arguments).last_hidden_state
        h_B, h_T = streams.index_select(1, output_indices).float()
        return h_B, h_T

    def copy_block(self, source: int, target: int) -> None:
        """Copy the keys and values of block `source` to block `target`, in every layer."""
        for cache in self.kv_caches.values():
            cache[:, target] = cache[:, source]


def require_supported_family(config: Any) -> None:
    """Raise DecoderError unless a backbone's config is of a model family in model_families.py."""
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        raise DecoderError(
            f"the reward model's backbone is a {config.model_type}; accepted: "
            f"{listed(SUPPORTED_MODEL_TYPES)}. Train the adapter on a backbone of these, or use the shared "
            "engine."
        )


def _add_lora(layers: Any, adapter: Adapter, dtype: torch.dtype, device: torch.device) -> None:
    for (index, name), pair in adapter.lora.weights.items():
        layer = layers[index]
        linear = getattr(getattr(layer, LINEAR_MODULES[name].parent), name)
        A, B = reward_lora.pack_lora_pairs([pair], [linear.out_features], adapter.lora.scaling)
        reward_lora.add_reward_lora(linear, A, B, dtype, device)
