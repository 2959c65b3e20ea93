"""Dimensions of several adapters in one: heads alone share nothing but the backbone, and stand side by side.

A dimension that several adapters have is their sum, each times its factor: two teachers of one thing. Where
their rewards have nothing in common, 0.7 times each keeps the spread of one logit. In: adapters, and which
dimensions of each. Out: an Adapter. A trunk belongs to all of its dimensions, and cannot be merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.adapter.manifest import FORMAT_2, training_sections
from pad_vllm.adapter.peft_lora import EMPTY_LORA
from pad_vllm.wording import listed


@dataclass(frozen=True)
class AdapterPart:
    """Some dimensions of an adapter, each with its factor; none named is all, as they are."""

    adapter: Adapter
    selected: Mapping[str, float]

    @property
    def factors(self) -> Mapping[str, float]:
        return self.selected or dict.fromkeys(self.adapter.config.dimensions, 1.0)


def merge_adapters(
    parts: Sequence[AdapterPart], *, beta: float | None = None, min_p: float | None = None
) -> Adapter:
    """beta, min_p: the new adapter's; None is the first's, as the other defaults are.

    Raises AdapterError for trunks, different backbones or chat templates, and unknown dimensions.
    """
    require_mergeable(parts)
    first = parts[0].adapter.config
    names = tuple(dict.fromkeys(name for part in parts for name in part.factors))
    heads = [_head(parts, name) for name in names]
    rank = max(A.shape[0] for A, _, _ in heads)
    D, H = len(names), first.backbone.hidden_size
    A, B, C = torch.zeros(D, rank, H), torch.zeros(D, H, rank), torch.zeros(D, H)
    for place, (a, b, c) in enumerate(heads):
        A[place, : len(a)], B[place, :, : len(a)], C[place] = a, b, c
    config = replace(
        first,
        format_version=FORMAT_2,
        dimensions=names,
        head_rank=rank,
        beta=first.beta if beta is None else beta,
        min_p=first.min_p if min_p is None else min_p,
        training={"parts": [row for part in parts for row in _training(part)]},
    )
    constants = any(part.adapter.head_C is not None for part in parts)
    return Adapter(config, EMPTY_LORA, A, B, C if constants else None)


def _head(parts: Sequence[AdapterPart], name: str) -> tuple[Tensor, Tensor, Tensor]:
    """A [r, H], B [H, r], c [H] of a dimension, r the ranks of all who have it."""
    A, B, C = [], [], torch.zeros(parts[0].adapter.head_A.shape[-1])
    for part in parts:
        if name not in part.factors:
            continue
        adapter, factor = part.adapter, part.factors[name]
        place = adapter.config.dimensions.index(name)
        A.append(adapter.head_A[place])
        B.append(factor * adapter.head_B[place])
        if adapter.head_C is not None:
            C = C + factor * adapter.head_C[place]
    return torch.cat(A), torch.cat(B, 1), C


def _training(part: AdapterPart) -> list[dict[str, Any]]:
    """Of what was merged before, its own parts: nobody has to look for a part in a part."""
    rows = []
    for one in training_sections(part.adapter.config):
        before = one.get("dimensions") or dict.fromkeys(part.factors, 1.0)
        taken = {name: by * before[name] for name, by in part.factors.items() if name in before}
        if taken:
            rows.append({**one, "dimensions": taken})
    return rows


def require_mergeable(parts: Sequence[AdapterPart]) -> None:
    """Raises AdapterError where they cannot stand side by side."""
    first = parts[0].adapter.config
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
        for name in part.factors:
            if name not in config.dimensions:
                raise AdapterError(
                    f"{path} has no dimension {name}; accepted: {listed(config.dimensions)}"
                )
