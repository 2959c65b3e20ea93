"""The token ids that begin and end a reasoning model's <think> part.

In: vLLM's reasoning config, as `--reasoning-parser` or `--reasoning-config` makes it. Out: ReasoningMarkers,
or a ValueError.
"""

from __future__ import annotations

from typing import NamedTuple

from pad_vllm.vllm_api.vllm_names import VllmConfig


class ReasoningMarkers(NamedTuple):
    """Token ids of the base."""

    start_id: int
    """<think>."""

    end_id: int
    """</think>."""


def find_reasoning_markers(config: VllmConfig) -> ReasoningMarkers:
    """The markers that vLLM is configured with. Raises ValueError unless each of them is one token."""
    reasoning = getattr(config, "reasoning_config", None)
    start = getattr(reasoning, "reasoning_start_token_ids", None) or []
    end = getattr(reasoning, "natural_reasoning_end_token_ids", None) or []
    if len(start) != 1 or len(end) != 1:
        raise ValueError(
            "additional_config['pad']['reasoning'] is 'unguided', and by vLLM's reasoning config reasoning "
            f"begins with the tokens {start} and ends with {end}; accepted: one token each. Name the base's "
            "parser with --reasoning-parser, or leave the setting out."
        )
    return ReasoningMarkers(start[0], end[0])
