"""The personalised reward model in PyTorch: a frozen backbone, LoRA from the fork layer up, preference heads.

With heads only there is no LoRA, h_T = h_B, and the backbone, of any architecture, runs once.
In: token ids. Out: final hidden states with the adapter off (h_B) and on (h_T), features and rewards.
Training runs on it and every engine is tested against it. Sequences are right-padded: causal attention keeps
padding out of the real positions, so no mask is needed. Knows nothing of vLLM. The backbone may lie on
several devices, between which Accelerate's hooks move states; heads and results are where lm_head is.
Shapes: N sequences of T tokens, H hidden size, V vocabulary, D dimensions, r head rank, K candidates.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pad_vllm import guidance
from pad_vllm.adapter.lora_modules import LINEAR_MODULES

if TYPE_CHECKING:
    from pad_vllm.adapter.adapter import Adapter


class PersRM(nn.Module):
    """phi, R_w and the two hidden states of section "The reward" in ARCHITECTURE.md."""

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
        constants: bool = False,
        gates: bool = False,
    ) -> None:
        """Freeze the backbone, put LoRA into its top layers, and make heads whose rewards are 0.

        Args:
            backbone: a Transformers causal language model of L decoder layers; it is changed in place.
            fork_layer: 0 to L. LoRA goes into layers fork_layer .. L-1 (PEFT's `layers_to_transform`); L is
                heads only, without LoRA.
            dimensions: names of the D preference dimensions.
            lora_rank: rank of the LoRA.
            lora_alpha: PEFT's alpha; the LoRA is scaled by alpha / rank.
            lora_modules: names of the linear layers that get LoRA.
            head_rank: r.
            constants: whether a head also has a constant vector, `head_C`.
            gates: whether a head also has a gate, `head_G`; of zeros, which is a factor of 1.

        Raises:
            ValueError: the backbone does not have this fork layer, or can only carry heads.
        """
        super().__init__()
        # Of a model that reads images too, its language model's.
        config = backbone.config.get_text_config()
        num_layers = config.num_hidden_layers
        if not 0 <= fork_layer <= num_layers:
            raise ValueError(f"fork_layer {fork_layer}: this backbone accepts 0..{num_layers}")
        self.fork_layer = fork_layer
        self.dimensions = tuple(dimensions)
        backbone.requires_grad_(False)
        self.heads_only = fork_layer == num_layers
        self.lora: Any = None
        if not self.heads_only:
            require_decoder_layers(
                backbone, f"fork_layer {fork_layer}", f"heads only, fork_layer {num_layers}"
            )
            self.lora = _with_lora(
                backbone,
                layers=range(fork_layer, num_layers),
                rank=lora_rank,
                alpha=lora_alpha,
                modules=lora_modules,
            )
        self.backbone = backbone
        hidden_size = config.hidden_size
        D, device = len(self.dimensions), backbone.lm_head.weight.device
        drawn = torch.randn(D, head_rank, hidden_size) / hidden_size**0.5
        self.head_A = nn.Parameter(drawn.to(device))
        self.head_B = nn.Parameter(torch.zeros(D, hidden_size, head_rank, device=device))
        self.head_C = (
            nn.Parameter(torch.zeros(D, hidden_size, device=device)) if constants else None
        )
        self.head_G = nn.Parameter(torch.zeros_like(self.head_A)) if gates else None
        # In a tuple, so that shared modules are not registered a second time.
        self._lower_and_upper: tuple[Any, ...] = ()
        if not self.heads_only:
            decoder = backbone.model
            self._lower_and_upper = (
                decoder_slice(decoder, 0, fork_layer, norm=False),
                decoder_slice(decoder, fork_layer, num_layers, norm=True),
            )

    @classmethod
    def from_adapter(cls, backbone: Any, adapter: Adapter) -> PersRM:
        """The reward model that `adapter` holds, in eval mode; backbone: what it was trained on, in place."""
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
            constants=adapter.head_C is not None,
            gates=config.gated,
        )
        with torch.no_grad():
            for key, (A, B) in model.lora_weights().items():
                A.copy_(lora.weights[key][0])
                B.copy_(lora.weights[key][1])
            for parameter, saved in zip(model.heads, adapter.heads, strict=True):
                if parameter is not None and saved is not None:
                    parameter.copy_(saved)
        return model.eval()

    @property
    def heads(self) -> guidance.HeadTensors:
        """The trainable heads: the last arguments of the rule's functions."""
        return guidance.HeadTensors(self.head_A, self.head_B, self.head_C, self.head_G)

    def adapter_off(self) -> AbstractContextManager[None]:
        """Within it the backbone is the base: its LoRA, where it has one, is off."""
        if self.lora is None:
            return nullcontext()
        off: AbstractContextManager[None] = self.lora.disable_adapter()
        return off

    def lora_parameters(self) -> dict[str, nn.Parameter]:
        """The LoRA's trainable parameters by PEFT's names; none with heads only."""
        if self.heads_only:
            return {}
        parameters = self.lora.named_parameters()
        return {name: parameter for name, parameter in parameters if "lora_" in name}

    def lora_weights(self) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
        """(layer, module) -> (A [r, in], B [out, r]), the trainable parameters themselves."""
        weights: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        if self.heads_only:
            return weights
        for index in range(self.fork_layer, len(self.backbone.model.layers)):
            for name, module in self.backbone.model.layers[index].named_modules():
                if hasattr(module, "lora_A") and "default" in module.lora_A:
                    key = (index, name.rsplit(".", 1)[-1])
                    weights[key] = (
                        module.lora_A["default"].weight,
                        module.lora_B["default"].weight,
                    )
        return weights

    def states_below_fork(self, input_ids: Tensor) -> Tensor:
        """The activations that both streams share: ids [N, T] -> residual stream below the fork layer [N, T,
        H]; with heads only the final hidden state. Without gradients.
        """
        if self.heads_only:
            return self._backbone_states(input_ids)
        if self.fork_layer == 0:
            return self.backbone.model.embed_tokens(input_ids)
        lower, _ = self._lower_and_upper
        with torch.no_grad(), self.adapter_off():
            return self._here(lower(input_ids=input_ids, use_cache=False))

    def base_states(self, forked: Tensor) -> Tensor:
        """h_B [N, T, H] from `states_below_fork`: the top layers with the adapter off. Without gradients."""
        if self.heads_only:
            return forked
        _, upper = self._lower_and_upper
        with torch.no_grad(), self.adapter_off():
            return self._here(upper(inputs_embeds=forked, use_cache=False))

    def trunk_states(self, forked: Tensor) -> Tensor:
        """h_T [N, T, H] from `states_below_fork`: the top layers with the adapter on. With gradients."""
        if self.heads_only:
            return forked
        _, upper = self._lower_and_upper
        with self._lora_in_backbone_type():
            return self._here(upper(inputs_embeds=forked, use_cache=False))

    @contextmanager
    def _lora_in_backbone_type(self) -> Iterator[None]:
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
        forked = self.states_below_fork(input_ids)
        return self.base_states(forked), self.trunk_states(forked)

    def hidden_twice(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """As `hidden`, by two forwards of the whole backbone: the slow reference that tests compare with."""
        h_B = self._backbone_states(input_ids)
        if self.heads_only:
            return h_B, h_B
        return h_B, self._here(self.backbone.model(input_ids=input_ids, use_cache=False))

    def _backbone_states(self, input_ids: Tensor) -> Tensor:
        """h_B [N, T, H] by one forward of the whole backbone, whatever its architecture."""
        with torch.no_grad(), self.adapter_off():
            return self._here(self.backbone.base_model(input_ids=input_ids, use_cache=False))

    def _here(self, output: Any) -> Tensor:
        """A decoder's last hidden states, on the heads' device."""
        return output.last_hidden_state.to(self.head_A.device)

    def base_logits(self, h_B: Tensor) -> Tensor:
        """z_B: h_B [..., H] -> [..., V] float32."""
        return self.backbone.lm_head(h_B).float()

    def embeddings(self, ids: Tensor) -> Tensor:
        """e_a, rows of the output embedding: ids [...] -> [..., H] float32."""
        return nn.functional.embedding(ids, self.backbone.lm_head.weight).float()

    def features(self, h_B: Tensor, h_T: Tensor, ids: Tensor) -> Tensor:
        """phi of the candidates, the reward of each dimension.

        Args:
            h_B: [..., H], any float type.
            h_T: [..., H].
            ids: [..., K] int64, candidate tokens.

        Returns:
            [..., K, D] float32, in logit units.
        """
        return guidance.features(h_B.float(), h_T.float(), self.embeddings(ids), *self.heads)

    def rewards(self, h_B: Tensor, h_T: Tensor, ids: Tensor, w: Tensor) -> Tensor:
        """R_w of the candidates.

        Args:
            h_B: [..., H], any float type.
            h_T: [..., H].
            ids: [..., K] int64, candidate tokens.
            w: [..., D] float32, preference weights.

        Returns:
            [..., K] float32, in logit units.
        """
        d_w = guidance.reward_direction(h_B.float(), h_T.float(), w, *self.heads)
        return guidance.rewards(d_w, self.embeddings(ids))

    def scores(
        self, h_B: Tensor, h_T: Tensor, w: Tensor, beta: float, top_k: int
    ) -> tuple[Tensor, Tensor]:
        """Guided scores z_B + beta * R_w of the base's best candidates; no guards.

        Args:
            h_B: [..., H], in the backbone's type.
            h_T: [..., H].
            w: [..., D] float32, preference weights.
            beta: strength.
            top_k: number of candidates, k.

        Returns:
            Scores [..., k] float32 and token ids [..., k] int64, best base logit first.
        """
        z, ids = self.base_logits(h_B).topk(top_k)
        return z + beta * self.rewards(h_B, h_T, ids, w), ids


def load_causal_lm(name: str | Path, **settings: Any) -> Any:
    """A checkpoint's causal language model from Transformers, to be a PersRM's backbone.

    One that reads images too is opened whole, where Transformers has no class for its text alone.

    Args:
        name: folder or hub name.
        **settings: of `from_pretrained`.
    """
    return _opener(name).from_pretrained(name, **settings)


def causal_lm_without_weights(name: str | Path) -> Any:
    """The same model with whatever a new model has as weights, for its layers and sizes. name: as above."""
    from transformers import AutoConfig

    return _opener(name).from_config(AutoConfig.from_pretrained(name))


def _opener(name: str | Path) -> Any:
    """Transformers' class for a checkpoint."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    is_text = type(AutoConfig.from_pretrained(name)) in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForCausalLM if is_text else AutoModelForImageTextToText


def require_decoder_layers(backbone: Any, asked: str, way_out: str) -> None:
    """Raises ValueError for a Transformers model that keeps its decoder layers elsewhere than most do.

    Args:
        backbone: the model.
        asked: what needs to run some of its layers alone.
        way_out: what is accepted instead.
    """
    if not hasattr(getattr(backbone, "model", None), "layers"):
        raise ValueError(
            f"{asked}: {type(backbone).__name__} is not a text model with its layers in `model.layers`, so "
            f"they cannot run as two streams; accepted: {way_out}."
        )


def _with_lora(
    backbone: Any, *, layers: Sequence[int], rank: int, alpha: float, modules: Sequence[str]
) -> Any:
    """Put LoRA modules into the backbone; returns PEFT's wrapper of it."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(modules),
        layers_to_transform=list(layers),
        layers_pattern="layers",
    )
    return get_peft_model(backbone, settings)


def decoder_slice(decoder: Any, start: int, stop: int, *, norm: bool) -> Any:
    """Some layers of a Transformers decoder as a decoder of its own, which shares its modules.

    Args:
        decoder: the decoder of a causal language model (`model.model`).
        start: index of the first layer.
        stop: index after the last layer.
        norm: whether the part ends with the decoder's final norm.
    """
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
