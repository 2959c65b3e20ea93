"""Merges dimensions and learned prefixes of several heads-only adapters on one backbone into one adapter.

A dimension that several adapters have becomes the sum of theirs, each times its factor: two teachers of one
thing. If their rewards are uncorrelated, a factor of 0.7 for each of two keeps the spread of one logit.
In: adapters, and which dimensions of each. Out: an Adapter. Adapters with a trunk cannot be merged, because
the trunk's LoRA belongs to all of its dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.adapter.learned_prefix import LearnedPrefix
from pad_vllm.adapter.manifest import AdapterConfig, format_version_for, training_sections
from pad_vllm.adapter.peft_lora import EMPTY_LORA
from pad_vllm.wording import listed


@dataclass(frozen=True)
class AdapterPart:
    """The dimensions to take from one adapter, each with a factor."""

    adapter: Adapter
    selected: Mapping[str, float]
    """Dimension -> factor of its rewards; empty: all dimensions, each times 1. A factor of 0 takes the
    learned prefix of that name and no head.
    """

    @property
    def factors(self) -> Mapping[str, float]:
        """Dimension -> factor, with all dimensions named."""
        return self.selected or dict.fromkeys(self.adapter.config.dimensions, 1.0)

    @property
    def selected_prefixes(self) -> Mapping[str, LearnedPrefix]:
        """The learned prefixes that have the name of a selected dimension; all of them if all are selected.

        Factors do not change them.
        """
        prefixes = self.adapter.prefixes
        return {n: p for n, p in prefixes.items() if not self.selected or n in self.selected}


def merge_adapters(
    parts: Sequence[AdapterPart],
    *,
    beta: float | None = None,
    min_p: float | None = None,
    loop_price: float | None = None,
) -> Adapter:
    """One adapter with the selected dimensions of all parts.

    Args:
        parts: Adapters and their selected dimensions. Other defaults, such as top_k, are the first one's.
        beta: Default strength of the new adapter; None: the first adapter's.
        min_p: Default min-p guard of the new adapter; None: the first adapter's.
        loop_price: Default price of a loop of the new adapter; None: the first adapter's.

    Returns:
        An adapter in memory. Its heads have the rank of the largest sum; smaller ones are padded with zeros.

    Raises:
        AdapterError: An adapter has a trunk, backbones or chat templates differ, a dimension or a learned
            prefix is unknown, or no head is taken.
    """
    require_mergeable(parts)
    first = parts[0].adapter.config
    named = ((name, factor) for part in parts for name, factor in part.factors.items())
    dimensions = tuple(dict.fromkeys(name for name, factor in named if factor))
    if not dimensions:
        raise AdapterError(
            "no head is taken: every factor is 0, and an adapter has one dimension at least; accepted: NAME, "
            "or NAME=FACTOR with another factor, of one dimension"
        )
    heads = [_summed_head(parts, name) for name in dimensions]
    rank = max(len(head.A) for head in heads)
    D, H = len(dimensions), first.backbone.hidden_size
    A, B, C = torch.zeros(D, rank, H), torch.zeros(D, H, rank), torch.zeros(D, H)
    G = torch.zeros_like(A)
    for index, head in enumerate(heads):
        own = len(head.A)
        A[index, :own], B[index, :, :own], C[index], G[index, :own] = head
    has_constants = any(part.adapter.head_C is not None for part in parts)
    gated = any(part.adapter.config.gated for part in parts)
    config = replace(
        first,
        format_version=format_version_for(
            first.backbone, heads_only=True, constants=has_constants, gated=gated
        ),
        gated=gated,
        prefixes=None,
        dimensions=dimensions,
        head_rank=rank,
        beta=first.beta if beta is None else beta,
        min_p=first.min_p if min_p is None else min_p,
        loop_price=first.loop_price if loop_price is None else loop_price,
        training={"parts": [section for part in parts for section in _scaled_sections(part)]},
    )
    merged = Adapter(config, EMPTY_LORA, A, B, C if has_constants else None, G if gated else None)
    return _with_merged_prefixes(merged, parts)


def _with_merged_prefixes(adapter: Adapter, parts: Sequence[AdapterPart]) -> Adapter:
    """The adapter with those of all parts; of two of one name the first, as keys and values cannot be added.
    Raises AdapterError where fork layers or lengths differ.
    """
    merged: dict[str, LearnedPrefix] = {}
    shapes, betas = {}, {}
    for part in parts:
        config = part.adapter.config.prefixes
        for name, prefix in part.selected_prefixes.items():
            assert config is not None
            shapes[config.fork_layer, config.num_tokens] = part.adapter.path
            if name in merged:
                continue
            merged[name] = prefix
            if name in config.betas:
                betas[name] = config.betas[name]
    if len(shapes) > 1:
        described = (f"{path}: {layer} and {tokens}" for (layer, tokens), path in shapes.items())
        raise AdapterError(
            f"learned prefixes have other fork layers and numbers of tokens ({listed(described)}); accepted: "
            "the same in all adapters. Train them with the same --prefix-fork-layer and --prefix-tokens"
        )
    if not merged:
        return adapter
    ((fork_layer, _),) = shapes
    return adapter.with_prefixes(fork_layer, merged, betas)


class _SummedHead(NamedTuple):
    """The head of one dimension; r is the sum of the ranks in the parts that have it."""

    A: Tensor  # [r, H]
    B: Tensor  # [H, r]
    C: Tensor  # [H], without those of parts that have no constants
    G: Tensor  # [r, H], zeros for parts without gates


def _summed_head(parts: Sequence[AdapterPart], name: str) -> _SummedHead:
    A, B, C, G = [], [], torch.zeros(parts[0].adapter.head_A.shape[-1]), []
    for part in parts:
        if not part.factors.get(name):
            continue
        adapter, factor = part.adapter, part.factors[name]
        index = adapter.config.dimensions.index(name)
        A.append(adapter.head_A[index])
        B.append(factor * adapter.head_B[index])
        if adapter.head_C is not None:
            C = C + factor * adapter.head_C[index]
        G.append(torch.zeros_like(A[-1]) if adapter.head_G is None else adapter.head_G[index])
    return _SummedHead(torch.cat(A), torch.cat(B, 1), C, torch.cat(G))


def _scaled_sections(part: AdapterPart) -> list[dict[str, Any]]:
    """How the part's dimensions were trained. An adapter that was merged before gives one section per part of
    its own, so sections are never nested.
    """
    sections = []
    for section in training_sections(part.adapter.config):
        earlier = section.get("dimensions") or dict.fromkeys(part.factors, 1.0)
        factors = {
            name: factor * earlier[name] for name, factor in part.factors.items() if name in earlier
        }
        if factors:
            # A dose is of the strengths that its adapter had as a whole.
            kept = {key: value for key, value in section.items() if key != "dose"}
            sections.append({**kept, "dimensions": factors})
    return sections


def require_mergeable(parts: Sequence[AdapterPart]) -> None:
    """Raises AdapterError unless all adapters are heads only, have one backbone and one chat template, and
    have the selected dimensions and, of those with factor 0, learned prefixes.
    """
    first = parts[0].adapter
    for part in parts:
        config, path = part.adapter.config, part.adapter.path
        require_stackable(config, path, first.config, first.path)
        for name, factor in part.factors.items():
            if name not in config.dimensions:
                raise AdapterError(
                    f"{path} has no dimension {name}; accepted: {listed(config.dimensions)}"
                )
            if not factor and name not in part.adapter.prefixes:
                raise AdapterError(
                    f"{name}=0 takes the learned prefix {name}, and {path} has none of that name; accepted: "
                    f"another factor, or 0 of {listed(part.adapter.prefixes) or 'no dimension'}"
                )


def require_stackable(
    config: AdapterConfig, path: object, first: AdapterConfig, first_path: object
) -> None:
    """Raises AdapterError unless an adapter is heads only, on the backbone and with the chat template of the
    first one.

    Args:
        config: of the adapter.
        path: its folder, for messages.
        first: config of the adapter beside whose heads it is to stand.
        first_path: folder of that one.
    """
    if not config.heads_only:
        raise AdapterError(
            f"{path} has a trunk (fork_layer {config.fork_layer} of {config.backbone.num_layers}), which "
            "belongs to all of its dimensions; accepted: heads only, as --teacher scores and --teacher "
            "prompt train them"
        )
    same = {
        "backbone": replace(config.backbone, name=first.backbone.name) == first.backbone,
        "chat_template": config.chat_template == first.chat_template,
    }
    for name, equal in same.items():
        if not equal:
            raise AdapterError(
                f"{path} has another {name} than {first_path}; accepted: adapters "
                f"with the same {name}. Train them on the same base"
            )
