"""An instruction as the tokens of a user's turn, apart from what stands before it.

In: a tokenizer, a sentence. Out: token ids. Knows no model and no engine.
"""

from __future__ import annotations

from typing import Any

from pad_vllm.instruction import InstructionTokens
from pad_vllm.text.common_start import common_start_length
from pad_vllm.wording import short_repr

_PROBE = "\ue000"
"""A character of Unicode's private use, which no instruction begins with: it shows where a turn's text is."""


def instruction_tokens(tokenizer: Any, instruction: str) -> InstructionTokens:
    """Tokens of an instruction in a user's turn of its own, up to its last one.

    The opening is the template's system prompt and the marks of the turn; without a chat template the
    tokenizer's own begin-of-text token, if it has one.

    Args:
        tokenizer: of the base, with its chat template if it has one.
        instruction: a sentence, such as "Answer in a funny way".

    Returns:
        Token ids, in the sentence one at least.

    Raises:
        ValueError: the chat template renders no such turn.
    """
    sentence = instruction.strip() or instruction
    if tokenizer.chat_template:
        opening, added = _turn_opening(tokenizer, sentence), {"add_special_tokens": False}
    else:
        opening, added = "", {}
    text = tokenizer(opening + sentence, **added)["input_ids"]
    alone = tokenizer(opening, **added)["input_ids"]
    before = common_start_length(alone, text)
    return InstructionTokens(tuple(text[:before]), tuple(text[before:]))


def _turn_opening(tokenizer: Any, sentence: str) -> str:
    """What the chat template puts before the content of a conversation's first turn."""
    from jinja2 import TemplateError

    def rendered(content: str) -> str:
        turn = {"role": "user", "content": content}
        return str(
            tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=False)
        )

    try:
        opening, mark, _ = rendered(_PROBE).partition(_PROBE)
        if mark and rendered(sentence).startswith(opening + sentence):
            return opening
    except TemplateError:
        pass
    raise ValueError(
        f"the chat template renders no user's turn with {short_repr(sentence)} in it; accepted: a template "
        "of users' turns. Give one: --chat-template FILE"
    )
