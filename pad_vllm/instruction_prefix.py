"""An instruction in front of the reward stream, in PyTorch: what `shared` serves for `pad_preference`.

The layers from the fork layer up read an instruction once, as a user's turn of its own. The keys and values
of the sentence are its prefix; those of what every conversation begins with are not, because the text has
them too, and a second system prompt in front makes a base decline. In the reward stream these layers attend
to the prefix and to the text, in the base stream to the text only, so h_T is the state of a base that is
told the instruction from the fork layer up. Nothing is trained:

    R(a) = < e_a , h_T - h_B >

Every engine that serves instructions is tested against this module. Sequences are right-padded: causal
attention keeps padding out of the real positions. Knows nothing of vLLM. Shapes: N sequences of T tokens, P
tokens of a prefix, H hidden size, K candidates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from pad_vllm.instruction import InstructionTokens
from pad_vllm.persrm import decoder_slice, require_decoder_layers


class InstructionPrefix(NamedTuple):
    """Keys and values of an instruction in the forked layers, each [KV heads, P, width]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """P."""
        return self.keys[0].shape[1]


class InstructedBackbone:
    """A frozen causal language model whose layers from the fork layer up may read an instruction first."""

    def __init__(self, backbone: Any, fork_layer: int) -> None:
        """Share the backbone's modules; it is not changed.

        Args:
            backbone: a Transformers causal language model of L decoder layers with rotary positions.
            fork_layer: 0 to L - 1, the first layer that reads instructions.

        Raises:
            ValueError: the backbone does not have this layer, is no text model, or a layer from there up has
                sliding-window attention, in which a long text would leave the instruction behind.
        """
        require_decoder_layers(
            backbone, f"an instruction from layer {fork_layer} up", "heads only, without a prefix"
        )
        num_layers = backbone.config.num_hidden_layers
        if not 0 <= fork_layer < num_layers:
            raise ValueError(f"fork_layer {fork_layer}: this backbone accepts 0..{num_layers - 1}")
        layer_types = getattr(backbone.config, "layer_types", None)
        if layer_types is None:
            window = getattr(backbone.config, "sliding_window", None)
            layer_types = ["sliding_attention" if window else "full_attention"] * num_layers
        if "sliding_attention" in layer_types[fork_layer:]:
            raise ValueError(
                f"fork_layer {fork_layer}: layers from there up have sliding-window attention, which would "
                "lose sight of an instruction; accepted are layers above them."
            )
        self.backbone, self.fork_layer, self.num_layers = backbone, fork_layer, num_layers
        decoder = backbone.model
        self._lower = decoder_slice(decoder, 0, fork_layer, norm=False) if fork_layer else None
        self._upper = decoder_slice(decoder, fork_layer, num_layers, norm=True)

    @property
    def device(self) -> torch.device:
        """Where the backbone is; of one that lies on several devices, where its input is."""
        found: torch.device = self.backbone.device
        return found

    @torch.no_grad()
    def states_below_fork(self, input_ids: Tensor) -> Tensor:
        """What both streams share: ids [N, T] -> residual stream below the fork layer [N, T, H]."""
        if self._lower is None:
            return self.backbone.model.embed_tokens(input_ids)
        return self._lower(input_ids=input_ids, use_cache=False).last_hidden_state

    @torch.no_grad()
    def base_states(self, forked: Tensor) -> Tensor:
        """h_B [N, T, H] from `states_below_fork`."""
        return self._upper(inputs_embeds=forked, use_cache=False).last_hidden_state

    @torch.no_grad()
    def read_instruction(
        self, instruction: InstructionTokens, block_size: int = 1
    ) -> InstructionPrefix:
        """The prefix of an instruction, read as a text that ends at position -1.

        So the request's tokens keep their positions, and rotary attention, which knows only distances, sees
        one text.

        Args:
            instruction: with the opening that is read before it and not kept.
            block_size: the prefix fills whole blocks of so many tokens.

        Returns:
            A prefix of `instruction.prefix_length(block_size)` tokens: the sentence's, over and over.
        """
        T = len(instruction.text)
        cache = DynamicCache()
        self._upper(
            inputs_embeds=self.states_below_fork(
                torch.tensor([instruction.text], device=self.device)
            ),
            position_ids=torch.arange(-T, 0, device=self.device).unsqueeze(0),
            attention_mask=self._causal_mask(T, 0),
            past_key_values=cache,
            use_cache=True,
        )
        kept = instruction.kept(block_size)
        layers, device = cache.layers[self.fork_layer :], self.device
        return InstructionPrefix(
            tuple(layer.keys[0][:, kept].to(device) for layer in layers),
            tuple(layer.values[0][:, kept].to(device) for layer in layers),
        )

    def instructed_states(self, forked: Tensor, prefix: InstructionPrefix) -> Tensor:
        """The reward stream's final hidden states. Gradients flow to the prefix.

        Args:
            forked: [N, T, H] from `states_below_fork`.
            prefix: of the instruction, which every sequence reads.

        Returns:
            h_T [N, T, H].
        """
        N, T = forked.shape[:2]
        cache = DynamicCache()
        for index, (keys, values) in enumerate(zip(*prefix, strict=True), self.fork_layer):
            device = next(self.backbone.model.layers[index].parameters()).device
            both = (part.to(device).expand(N, -1, -1, -1) for part in (keys, values))
            cache.update(*both, index)
        hidden: Tensor = self._upper(
            inputs_embeds=forked,
            position_ids=torch.arange(T, device=self.device).unsqueeze(0),
            attention_mask=self._causal_mask(T, prefix.length),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _causal_mask(self, length: int, prefix_length: int) -> Tensor:
        """[1, 1, T, P + T]: 0 where a token may look, the least number where not."""
        dtype, shape = self.backbone.dtype, (length, prefix_length + length)
        blocked = torch.full(shape, torch.finfo(dtype).min, dtype=dtype, device=self.device)
        return blocked.triu(prefix_length + 1)[None, None]
