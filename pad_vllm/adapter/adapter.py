"""An adapter in memory: a personalised reward model without its backbone.

In: tensors and their config. Out: an `Adapter` whose tensors have matching shapes. `load_adapter` makes them
float32 on the CPU. This module reads and writes no files (adapter_folder.py does), and does not know how the
adapter was trained or which engine serves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.adapter.learned_prefix import LearnedPrefix
from pad_vllm.adapter.manifest import (
    CONFIG_FILE,
    FORMAT_2,
    FORMAT_3,
    FORMAT_4,
    AdapterConfig,
    PrefixConfig,
)
from pad_vllm.adapter.peft_lora import LoRA
from pad_vllm.guidance import HeadTensors


@dataclass(frozen=True, eq=False)
class Adapter:
    """A personalised reward model without its backbone. Raises AdapterError where its parts do not fit.

    Shapes: D preference dimensions, head rank r, hidden size H.
    """

    config: AdapterConfig
    """The content of pad_config.json."""

    lora: LoRA
    """LoRA of the trunk, on every layer from the fork layer up; EMPTY_LORA for heads only."""

    head_A: Tensor
    """[D, r, H], down-projections of the preference heads."""

    head_B: Tensor
    """[D, H, r], up-projections of the preference heads."""

    head_C: Tensor | None = field(default=None)
    """[D, H], constant vectors of the heads; None if the heads have no constants."""

    head_G: Tensor | None = field(default=None)
    """[D, r, H], gates of the heads; None if the heads have none."""

    path: Path | None = field(default=None)
    """Folder that it was loaded from; None for an adapter that was made in memory."""

    prefixes: Mapping[str, LearnedPrefix] = field(default_factory=dict)
    """Name -> learned prefix, those that the config lists."""

    def __post_init__(self) -> None:
        D, r, H = (
            len(self.config.dimensions),
            self.config.head_rank,
            self.config.backbone.hidden_size,
        )
        _require_tensor("preference head A", self.head_A, (D, r, H), "[D, r, H]")
        _require_tensor("preference head B", self.head_B, (D, H, r), "[D, H, r]")
        if self.head_C is not None:
            _require_constants_accepted(self.config.format_version)
            _require_tensor("preference head C", self.head_C, (D, H), "[D, H]")
        _require_gates_announced(self.config, self.head_G)
        if self.head_G is not None:
            _require_tensor("preference head G", self.head_G, (D, r, H), "[D, r, H]")
        self.lora.require_layers(self.config.fork_layer, self.config.backbone.num_layers, H)
        for (layer, module), pair in self.lora.weights.items():
            for letter, tensor in zip("AB", pair, strict=True):
                _require_finite(f"LoRA {letter} of layer {layer} {module}", tensor)
        _require_listed_prefixes(self.config, self.prefixes)

    @property
    def heads(self) -> HeadTensors:
        """The last arguments of guidance.reward_direction."""
        return HeadTensors(self.head_A, self.head_B, self.head_C, self.head_G)

    @property
    def digest(self) -> str:
        """sha256 over config and tensors, as hex digits. It is part of vLLM's compile cache key."""
        digest = hashlib.sha256(self.config.to_json().encode())
        digest.update(f"{self.lora.rank} {self.lora.scaling!r}\n".encode())
        for name, tensor in self._named_tensors():
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
        return digest.hexdigest()

    def with_prefixes(
        self,
        fork_layer: int,
        prefixes: Mapping[str, LearnedPrefix],
        betas: Mapping[str, float] | None = None,
    ) -> Adapter:
        """A copy with these learned prefixes and no others.

        Args:
            fork_layer: first layer that reads them.
            prefixes: by name, of one length; one at least.
            betas: default strength of some of them, by name.
        """
        listed_prefixes = PrefixConfig(
            fork_layer,
            next(iter(prefixes.values())).num_tokens,
            {name: prefix.digest for name, prefix in prefixes.items()},
            dict(betas or {}),
        )
        version = max(self.config.format_version, FORMAT_3)
        config = replace(self.config, format_version=version, prefixes=listed_prefixes)
        return replace(self, config=config, prefixes=prefixes)

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from (("head_A", self.head_A), ("head_B", self.head_B))
        if self.head_C is not None:
            yield "head_C", self.head_C
        if self.head_G is not None:
            yield "head_G", self.head_G
        for (layer, module), (a, b) in sorted(self.lora.weights.items()):
            yield from ((f"{layer}.{module}.A", a), (f"{layer}.{module}.B", b))


def _require_listed_prefixes(config: AdapterConfig, prefixes: Mapping[str, LearnedPrefix]) -> None:
    found = {name: prefix.digest for name, prefix in prefixes.items()}
    expected = config.prefixes.digests if config.prefixes else {}
    for name in {**expected, **found}:
        if expected.get(name) != found.get(name):
            raise AdapterError(
                f"the learned prefix {name} is not the one that {CONFIG_FILE} lists (sha256 "
                f"{found.get(name, 'missing')}, listed {expected.get(name, 'not at all')}). The files are "
                "not of one adapter: copy or save them together."
            )
    for name, prefix in prefixes.items():
        assert config.prefixes is not None
        F = config.backbone.num_layers - config.prefixes.fork_layer
        found_shape, P = (prefix.keys.shape[0], prefix.num_tokens), config.prefixes.num_tokens
        if found_shape != (F, P):
            raise AdapterError(
                f"the learned prefix {name} has {found_shape[0]} layers and {found_shape[1]} tokens; "
                f"accepted: {F} and {P}, as {CONFIG_FILE} says."
            )


def _require_constants_accepted(format_version: int) -> None:
    if format_version < FORMAT_2:
        raise AdapterError(
            f"preference head C exists, but format_version is {format_version}; accepted: constants from "
            f"format_version {FORMAT_2} on. Set it in the config."
        )


def _require_gates_announced(config: AdapterConfig, head_G: Tensor | None) -> None:
    if config.gated != (head_G is not None):
        found = "is missing" if head_G is None else "exists"
        raise AdapterError(
            f"preference head G {found}, but gated is {config.gated}; accepted: gates where gated is true, "
            f"from format_version {FORMAT_4} on. Set it in the config."
        )


def _require_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], letters: str) -> None:
    """letters: the same shape in symbols, for the message."""
    if tuple(tensor.shape) != shape:
        raise AdapterError(
            f"{name} has shape {list(tensor.shape)}; accepted: {letters} = {list(shape)}, as "
            f"{CONFIG_FILE} says. The files are not of one adapter: copy or save them together."
        )
    _require_finite(name, tensor)


def _require_finite(name: str, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise AdapterError(
            f"{name} holds NaN or infinity; accepted: finite numbers. Training diverged: train it "
            "again, with a lower learning rate."
        )
