"""Texts that somebody chose between, as a reward model reads them: token ids behind their prompt.

In: a base's tokenizer, a conversation, its answers as text. Out: pairs (prompt ids, answer ids), what
feature_sums.py takes. An answer ends with the end-of-sequence token, as training's samples do: where to end
is part of a choice. Knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.conversation import Conversation


def context_tokens(backbone: Any) -> float:
    """The most tokens that a Transformers model reads; infinite where its config does not say."""
    config = backbone.config.get_text_config()
    limit: float = getattr(config, "max_position_embeddings", math.inf)
    return limit


def answer_sequences(
    tokenizer: Any, prompt: Conversation, answers: Sequence[str], max_tokens: float
) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, answer ids) of each answer.

    Args:
        tokenizer: the base's, with a chat template.
        prompt: ends with a turn of the user.
        answers: any texts.
        max_tokens: of a prompt and one answer together.

    Raises:
        ValueError: more tokens, or a prompt that the chat template refuses.
    """
    try:
        prompt_ids = chat_token_ids(tokenizer, prompt.messages())
    except TemplateError as error:  # such as a system turn for a model that knows none
        raise ValueError(f"the chat template refuses the prompt ({error})") from error
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    sequences = []
    for text in answers:
        answer = [*tokenizer(text, add_special_tokens=False)["input_ids"], *end]
        if len(prompt_ids) + len(answer) > max_tokens:
            raise ValueError(
                f"the prompt and an answer have {len(prompt_ids) + len(answer):,} tokens together; accepted: "
                f"at most {max_tokens:,}"
            )
        sequences.append((prompt_ids, answer))
    return sequences
