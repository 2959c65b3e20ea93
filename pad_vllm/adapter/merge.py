"""Dimensions of several adapters in one: heads alone share nothing but the backbone, and stand side by side.

In: adapters, and which dimensions of each. Out: an Adapter. A trunk belongs to all of its dimensions, and
cannot be merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.manifest import HEADS_VERSION, AdapterError
from pad_vllm.adapter.peft_lora import NO_LORA
from pad_vllm.wording import listed


@dataclass(frozen=True)
class Part:
    """Some dimensions of an adapter, in the order that they are to have; () is all."""

    adapter: Adapter
    dimensions: tuple[str, ...] = ()

    @property
    def named(self) -> tuple[str, ...]:
        return self.dimensions or self.adapter.config.dimensions

    @property
    def places(self) -> list[int]:
        known = self.adapter.config.dimensions
        for name in self.named:
            if name not in known:
                raise AdapterError(
                    f"{self.adapter.path} has no dimension {name}; accepted: {listed(known)}"
                )
        return [known.index(name) for name in self.named]


def merge(parts: Sequence[Part], *, beta: float | None = None) -> Adapter:
    """beta: the default strength; None is the first's, as the other defaults are.

    Raises AdapterError for trunks, different backbones or chat templates, and names that two parts have.
    """
    _require_alike(parts)
    rank = max(part.adapter.config.head_rank for part in parts)
    first = parts[0].adapter.config
    constants = any(part.adapter.head_C is not None for part in parts)
    A, B, C = zip(*(_heads(part, rank) for part in parts), strict=True)
    config = replace(
        first,
        format_version=HEADS_VERSION,
        dimensions=tuple(name for part in parts for name in part.named),
        head_rank=rank,
        beta=first.beta if beta is None else beta,
        training={"parts": [_training(part) for part in parts]},
    )
    whole = torch.cat(C) if constants else None
    return Adapter(config, NO_LORA, torch.cat(A), torch.cat(B), whole)


def _heads(part: Part, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    adapter, places = part.adapter, part.places
    more = rank - adapter.config.head_rank
    C = adapter.head_A.new_zeros(adapter.head_A[:, 0].shape)
    if adapter.head_C is not None:
        C = adapter.head_C
    return (
        pad(adapter.head_A, (0, 0, 0, more))[places],
        pad(adapter.head_B, (0, more))[places],
        C[places],
    )


def _training(part: Part) -> dict[str, object]:
    return {**part.adapter.config.training, "dimensions": list(part.named)}


def _require_alike(parts: Sequence[Part]) -> None:
    first = parts[0].adapter.config
    owners: dict[str, object] = {}
    for part in parts:
        config, path = part.adapter.config, part.adapter.path
        if not config.heads_only:
            raise AdapterError(
                f"{path} has a trunk (fork_layer {config.fork_layer} of {config.backbone.num_layers}), which "
                "belongs to all of its dimensions; accepted: heads alone, as --teacher scores and --teacher "
                "prompt train them"
            )
        alike = {
            "backbone": replace(config.backbone, name=first.backbone.name) == first.backbone,
            "chat_template": config.chat_template == first.chat_template,
        }
        for name, same in alike.items():
            if not same:
                raise AdapterError(
                    f"{path} has another {name} than {parts[0].adapter.path}; accepted: adapters of one. "
                    "Train them on the same base"
                )
        for name in part.named:
            if name in owners:
                raise AdapterError(
                    f"dimension {name} is in {owners[name]} and in {path}; accepted: one of each name. Take "
                    "some dimensions of an adapter as FOLDER:NAME,NAME"
                )
            owners[name] = path
