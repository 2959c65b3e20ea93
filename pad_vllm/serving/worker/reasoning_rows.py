"""Which rows are inside a reasoning model's <think> part, where the operator turned guidance off.

In: the texts so far, the token ids of <think> and </think>. Out: [G] bool.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pad_vllm.guidance import AnswerTokens
from pad_vllm.serving.start.reasoning_markers import ReasoningMarkers


def inside_reasoning(texts: AnswerTokens, markers: ReasoningMarkers) -> Tensor:
    """[G] bool: the last <think> of the text, prompt and answer, has no </think> after it.

    texts: must hold the prompts too, before where the answers start (V2 only).
    """
    tokens = texts.row_tokens()
    position = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    position = position * (position <= texts.stop.unsqueeze(-1))  # [G, L], 0 after a text's end

    def last_position(token: int) -> Tensor:
        return (position * (tokens == token)).amax(-1)

    return last_position(markers.start_id) > last_position(markers.end_id)
