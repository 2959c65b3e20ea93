"""Samples the token embedding of a loaded model, where its weights are in no file that could be read.

In: the base with its weights, and the values that an adapter's backbone has. Out: the same values of the
base.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.backbone.embedding_sample import sampled_places
from pad_vllm.vllm_api.vllm_names import VocabParallelEmbedding


def loaded_embedding_sample(
    model: nn.Module, served: Backbone, trained: Sequence[float]
) -> tuple[float, ...] | None:
    """SAMPLE_SIZE values of the model's token embedding; None where this process has none, or a packed one.

    Args:
        model: the base.
        served: its shape.
        trained: the sample that it will be compared with, whose values stand for those of rows that are on
            another rank: each rank compares its own.
    """
    found = (m for m in model.modules() if type(m) is VocabParallelEmbedding)
    embedding: Any = next(found, None)
    weight: Tensor | None = getattr(embedding, "weight", None)
    if weight is None or weight.ndim != 2 or weight.shape[1] != served.hidden_size:
        return None
    shard = embedding.shard_indices
    first: int = shard.org_vocab_start_index
    stop: int = min(shard.org_vocab_end_index, first + len(weight))
    places = (
        divmod(p, served.hidden_size) for p in sampled_places(served.vocab_size, weight.shape[1])
    )
    return tuple(
        weight[row - first, column].item() if first <= row < stop else value
        for (row, column), value in zip(places, trained, strict=True)
    )
