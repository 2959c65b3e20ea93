"""The personalised reward model in PyTorch: a frozen backbone, LoRA from the fork up, preference heads.

In: token ids. Out: final hidden states with the adapter off (h_B) and on (h_T), features and rewards.
Training runs on it and every engine is tested against it. Sequences are right-padded: causal
attention keeps padding out of the real positions, so no mask is needed. Knows nothing of vLLM.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pad_vllm import guidance
from pad_vllm.adapter.modules import LINEAR_MODULES

if TYPE_CHECKING:
    from pad_vllm.adapter.adapter import Adapter


class PersRM(nn.Module):
    """phi, R_w and the two hidden states of section "The reward" in ARCHITECTURE.md.

    backbone: a Transformers causal language model of `L` decoder layers; it is frozen, and LoRA
        modules are put into its layers `fork_layer .. L-1` (PEFT's `layers_to_transform`).
    dimensions: names of the D preference dimensions.

    Raises ValueError for a fork layer that the backbone does not have.
    """

    def __init__(
        self,
        backbone: Any,
        *,
        fork_layer: int,
        dimensions: Sequence[str],
        lora_rank: int = 16,
        lora_alpha: float = 32.0,
        lora_modules: Sequence[str] = tuple(LINEAR_MODULES),
        head_rank: int = 16,
    ) -> None:
        from peft import LoraConfig, get_peft_model

        super().__init__()
        layers = backbone.config.num_hidden_layers
        if not 0 <= fork_layer < layers:
            raise ValueError(f"fork_layer {fork_layer}: this backbone accepts 0..{layers - 1}")
        self.fork_layer = fork_layer
        self.dimensions = tuple(dimensions)
        backbone.requires_grad_(False)
        self.lora = get_peft_model(
            backbone,
            LoraConfig(
                r=lora_rank,
                lora_alpha=lora_alpha,
                target_modules=list(lora_modules),
                layers_to_transform=list(range(fork_layer, layers)),
                layers_pattern="layers",
            ),
        )
        self.backbone = backbone
        hidden = backbone.config.hidden_size
        count = len(self.dimensions)
        self.head_A = nn.Parameter(torch.randn(count, head_rank, hidden) / hidden**0.5)
        self.head_B = nn.Parameter(torch.zeros(count, hidden, head_rank))
        # A tuple, so that shared modules are not registered a second time.
        self._parts = (
            decoder_slice(backbone.model, 0, fork_layer, norm=False),
            decoder_slice(backbone.model, fork_layer, layers, norm=True),
        )

    @classmethod
    def from_adapter(cls, backbone: Any, adapter: Adapter) -> PersRM:
        """The reward model that `adapter` holds, on its own backbone."""
        config, lora = adapter.config, adapter.lora
        modules = sorted({module for _, module in lora.weights})
        model = cls(
            backbone,
            fork_layer=config.fork_layer,
            dimensions=config.dimensions,
            lora_rank=lora.rank,
            lora_alpha=lora.alpha,
            lora_modules=modules,
            head_rank=config.head_rank,
        )
        with torch.no_grad():
            for key, (a, b) in model.lora_weights().items():
                a.copy_(lora.weights[key][0])
                b.copy_(lora.weights[key][1])
            model.head_A.copy_(adapter.head_A)
            model.head_B.copy_(adapter.head_B)
        return model.eval()

    def lora_weights(self) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
        """(layer, module) -> (A [r, in], B [out, r]), the trainable parameters themselves."""
        weights = {}
        for index in range(self.fork_layer, len(self.backbone.model.layers)):
            for name, module in self.backbone.model.layers[index].named_modules():
                if hasattr(module, "lora_A") and "default" in module.lora_A:
                    key = (index, name.rsplit(".", 1)[-1])
                    weights[key] = (
                        module.lora_A["default"].weight,
                        module.lora_B["default"].weight,
                    )
        return weights

    def fork(self, input_ids: Tensor) -> Tensor:
        """The residual stream below the fork, common to both: ids [N, T] -> [N, T, H]."""
        if self.fork_layer == 0:
            return self.backbone.model.embed_tokens(input_ids)
        with torch.no_grad(), self.lora.disable_adapter():
            return self._parts[0](input_ids=input_ids, use_cache=False).last_hidden_state

    def reference(self, forked: Tensor) -> Tensor:
        """h_B [N, T, H] from the fork's activations: the top layers with the adapter off."""
        with torch.no_grad(), self.lora.disable_adapter():
            return self._parts[1](inputs_embeds=forked, use_cache=False).last_hidden_state

    def trunk(self, forked: Tensor) -> Tensor:
        """h_T [N, T, H] from the fork's activations: the top layers with the adapter on."""
        with self._in_backbone_type():
            return self._parts[1](inputs_embeds=forked, use_cache=False).last_hidden_state

    @contextmanager
    def _in_backbone_type(self) -> Iterator[None]:
        """Casts LoRA's float32 matrices to a bfloat16 backbone's type for the products.

        PEFT would cast every activation to float32 and back, which costs more than the products.
        """
        if self.backbone.dtype != torch.bfloat16:
            yield
            return
        from peft.helpers import disable_input_dtype_casting

        device = self.backbone.device.type
        with disable_input_dtype_casting(self.lora), torch.autocast(device, torch.bfloat16):
            yield

    def hidden(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The forked forward, lower layers run once: ids [N, T] -> (h_B, h_T), each [N, T, H]."""
        forked = self.fork(input_ids)
        return self.reference(forked), self.trunk(forked)

    def hidden_twice(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """`hidden` by two forwards of the whole backbone; the reference for tests."""
        with torch.no_grad(), self.lora.disable_adapter():
            h_B = self.backbone.model(input_ids=input_ids, use_cache=False).last_hidden_state
        return h_B, self.backbone.model(input_ids=input_ids, use_cache=False).last_hidden_state

    def base_logits(self, h_B: Tensor) -> Tensor:
        """z_B: h_B [..., H] -> [..., V] float32."""
        return self.backbone.lm_head(h_B).float()

    def embeddings(self, ids: Tensor) -> Tensor:
        """e_a, rows of the output embedding: ids [...] -> [..., H] float32."""
        return nn.functional.embedding(ids, self.backbone.lm_head.weight).float()

    def features(self, h_B: Tensor, h_T: Tensor, ids: Tensor) -> Tensor:
        """phi: h_B, h_T [..., H], candidate ids [..., K] -> [..., K, D]."""
        return guidance.features(
            h_B.float(), h_T.float(), self.embeddings(ids), self.head_A, self.head_B
        )

    def rewards(self, h_B: Tensor, h_T: Tensor, ids: Tensor, w: Tensor) -> Tensor:
        """R_w: h_B, h_T [..., H], candidate ids [..., K], weights w [..., D] -> [..., K], in logit units."""
        d_w = guidance.direction(h_B.float(), h_T.float(), w, self.head_A, self.head_B)
        return guidance.rewards(d_w, self.embeddings(ids))

    def scores(
        self, h_B: Tensor, h_T: Tensor, w: Tensor, beta: float, top_k: int
    ) -> tuple[Tensor, Tensor]:
        """h_B, h_T [..., H], w [..., D] -> guided scores, ids, each [..., k], best base logit first."""
        z, ids = self.base_logits(h_B).topk(top_k)
        return z + beta * self.rewards(h_B, h_T, ids, w), ids


def decoder_slice(decoder: Any, start: int, stop: int, *, norm: bool) -> Any:
    """Layers start..stop-1 of a Transformers decoder as a decoder of its own, sharing its modules."""
    part = copy.copy(decoder)
    part._modules = dict(decoder._modules)  # noqa: SLF001, copy.copy shares the dict
    part.layers = nn.ModuleList(list(decoder.layers)[start:stop])
    if not norm:
        part.norm = nn.Identity()
    part.config = copy.deepcopy(decoder.config)
    part.config.num_hidden_layers = stop - start
    if getattr(part.config, "layer_types", None):
        part.config.layer_types = list(part.config.layer_types)[start:stop]
    return part
