"""Which rows are inside a reasoning model's <think> part, where the operator wants it left as it is.

In: vLLM's reasoning config, as `--reasoning-parser` or `--reasoning-config` makes it; texts so far. Out:
[G] bool.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pad_vllm.guidance import Said
from pad_vllm.vllm_api.names import VllmConfig


class Markers(NamedTuple):
    """Token ids."""

    start: int  # <think>
    end: int  # </think>


def markers(config: VllmConfig) -> Markers:
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
    return Markers(start[0], end[0])


def inside(texts: Said, known: Markers) -> Tensor:
    """[G] bool: the last <think> of the text, prompt and answer, has no </think> behind it.

    texts: whole ones, whose prompts stand in front of where the answers start.
    """
    tokens = texts.texts()
    place = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    place = place * (place <= texts.stop.unsqueeze(-1))  # [G, L], 0 behind a text's end

    def last(token: int) -> Tensor:
        return (place * (tokens == token)).amax(-1)

    return last(known.start) > last(known.end)
