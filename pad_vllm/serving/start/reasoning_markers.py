"""The token ids that begin and end a reasoning model's <think> part.

In: vLLM's reasoning config, as `--reasoning-parser` or `--reasoning-config` makes it. Out: Markers, or
a ValueError.
"""

from __future__ import annotations

from typing import NamedTuple

from pad_vllm.vllm_api.vllm_names import VllmConfig


class ReasoningMarkers(NamedTuple):
    """Token ids."""

    start_id: int  # <think>
    end_id: int  # </think>


def find_reasoning_markers(config: VllmConfig) -> ReasoningMarkers:
    """Raises ValueError where vLLM does not know them, or one is more than a token."""
    known = getattr(config, "reasoning_config", None)
    start = getattr(known, "reasoning_start_token_ids", None) or []
    end = getattr(known, "natural_reasoning_end_token_ids", None) or []
    if len(start) != 1 or len(end) != 1:
        raise ValueError(
            f"reasoning is 'unguided', and vLLM knows it to begin with tokens {start} and to end with {end}; "
            "accepted: one token each. Name the base's parser with --reasoning-parser, or leave "
            "additional_config['pad']['reasoning'] out."
        )
    return ReasoningMarkers(start[0], end[0])
