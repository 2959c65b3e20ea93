"""The forked backbone on packed tokens: lower layers once, top layers as [base; reward], one set of weights.

Where the fork is at the top there is one stream: one pass, one cache, h_T = h_B.
In: token ids, positions and an attention Batch. Out: h_B and h_T of the tokens asked for. It holds the
KV cache's tensors; blocks.py and row.py keep which row has which blocks.
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
    """A reward model that cannot run; the message says why, what is accepted and the way out."""


class ForkedDecoder:
    """A reward model's two streams, or its one. A KV cache of at most `cache_bytes` is allocated at once."""

    def __init__(
        self,
        path: str | Path,
        adapter: Adapter,
        *,
        dtype: torch.dtype,
        device: torch.device,
        cache_bytes: int,
    ) -> None:
        """path: folder of the adapter's backbone. Raises DecoderError."""
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
        self.fork_layer, layers = adapter.config.fork_layer, len(model.model.layers)
        self.lm_head_weight = model.lm_head.weight
        self.max_positions = int(model.config.max_position_embeddings)
        self._embed = model.model.embed_tokens
        top = adapter.config.heads_only
        self._lower = decoder_slice(model.model, 0, self.fork_layer, norm=top)
        self._upper = (
            None if top else decoder_slice(model.model, self.fork_layer, layers, norm=True)
        )
        packed_cpu_linear.pack_linears(model.model.layers)
        _add_lora(model.model.layers, adapter, dtype, device)
        self.num_blocks = self._blocks(model.config, cache_bytes)
        self.kv_caches = self._caches(model.config, layers)

    def _blocks(self, config: Any, cache_bytes: int) -> int:
        """How many blocks fit."""
        each = block_bytes(config, self.fork_layer, self.dtype)
        if cache_bytes < 2 * each:
            raise DecoderError(
                f"the reward model's KV cache is {cache_bytes} bytes, and two blocks of {BLOCK_SIZE} "
                f"tokens take {2 * each}. Raise cache_gib in additional_config['pad']."
            )
        return cache_bytes // each

    def _caches(self, config: Any, layers: int) -> dict[int, Tensor]:
        kv, width = config.num_key_value_heads, head_dim(config)
        shapes = [
            (2, self.num_blocks, BLOCK_SIZE, kv * (1 if n < self.fork_layer else 2), width)
            for n in range(layers)
        ]
        return {
            layer: torch.zeros(shape, dtype=self.dtype, device=self.device)
            for layer, shape in enumerate(shapes)
        }

    def forward(
        self, ids: Tensor, positions: Tensor, batch: AttentionBatch, wanted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ids, positions [T], wanted [n] among them -> h_B, h_T, each [n, H] float32. An id beyond the
        vocabulary is read as the last one.
        """
        if self.device.type == "cpu":
            extra = packed_cpu_linear.rounded_row_count(len(ids)) - len(ids)
            ids, positions = (
                torch.nn.functional.pad(tensor, (0, extra)) for tensor in (ids, positions)
            )
        more: dict[str, Any] = {"use_cache": False, "pad_batch": batch}
        more["position_ids"] = positions.unsqueeze(0)
        # A base of the same tokenizer may have more rows than tokens, and more than this model.
        x = self._embed(ids.clamp(max=len(self.lm_head_weight) - 1).unsqueeze(0))
        if self.fork_layer:
            x = self._lower(inputs_embeds=x, **more).last_hidden_state
        if self._upper is None:
            h = x[0].index_select(0, wanted).float()
            return h, h
        both = self._upper(inputs_embeds=x.expand(2, -1, -1), **more).last_hidden_state
        h_B, h_T = both.index_select(1, wanted).float()
        return h_B, h_T

    def copy_block(self, source: int, target: int) -> None:
        """Copy the keys and values of block `source` to block `target`, in every layer."""
        for cache in self.kv_caches.values():
            cache[:, target] = cache[:, source]


def require_supported_family(config: Any) -> None:
    """Raises DecoderError for a backbone of a model family that is not supported (families.py)."""
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        raise DecoderError(
            f"the reward model's backbone is a {config.model_type}; accepted: {listed(SUPPORTED_MODEL_TYPES)}. "
            "Train the adapter on a backbone of these, or use the shared engine."
        )


def _add_lora(layers: Any, adapter: Adapter, dtype: torch.dtype, device: torch.device) -> None:
    for (index, name), pair in adapter.lora.weights.items():
        layer = layers[index]
        linear = getattr(getattr(layer, LINEAR_MODULES[name].parent), name)
        A, B = reward_lora.pack_lora_pairs([pair], [linear.out_features], adapter.lora.scaling)
        reward_lora.add_reward_lora(linear, A, B, dtype, device)
