"""Which rows are inside a reasoning model's <think> part, where the operator leaves it unguided.

In: the texts so far, the token ids of <think> and </think>. Out: [G] bool. Imports no vLLM.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pad_vllm.guidance import AnswerTokens
from pad_vllm.serving.start.reasoning_markers import ReasoningMarkers


def inside_reasoning(texts: AnswerTokens, known: ReasoningMarkers) -> Tensor:
    """[G] bool: the last <think> of the text, prompt and answer, has no </think> behind it.

    texts: whole ones, whose prompts stand in front of where the answers start.
    """
    tokens = texts.row_tokens()
    place = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    place = place * (place <= texts.stop.unsqueeze(-1))  # [G, L], 0 behind a text's end

    def last(token: int) -> Tensor:
        return (place * (tokens == token)).amax(-1)

    return last(known.start_id) > last(known.end_id)
