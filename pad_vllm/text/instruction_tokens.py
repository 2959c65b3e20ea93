"""An instruction as the tokens of a text of its own: two turns, and line feeds, which fill KV blocks.

In: a tokenizer, a sentence. Out: token ids. Knows no model and no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pad_vllm.wording import short_repr

AGREEMENT = "Sure!"
"""The assistant's turn. Read as a system turn alone, some instructions make a base decline the question
behind them (benchmarks/README.md).
"""


def instruction_token_ids(tokenizer: Any, instruction: str) -> list[int]:
    """Tokens of an instruction that is read alone.

    A user's turn and the assistant's agreement; without a chat template the plain text. Then a line feed,
    which `fill_blocks` repeats; where the tokenizer has none, the last token once more.

    Args:
        tokenizer: of the base, with its chat template if it has one.
        instruction: a sentence, such as "Answer in a funny way".

    Returns:
        Token ids, at least one.

    Raises:
        ValueError: the chat template renders no such turns.
    """
    ids = list(
        tokenizer(_instruction_text(tokenizer, instruction), add_special_tokens=False)["input_ids"]
    )
    line_feed = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return [*ids, (line_feed or ids)[-1]]


def fill_blocks(token_ids: Sequence[int], block_size: int) -> tuple[int, ...]:
    """An instruction's tokens with its last one repeated, to a whole number of blocks of `block_size` tokens.

    Measured on a base of 0.5B, line feeds change what an instruction does less than repeating it would.
    """
    missing = -len(token_ids) % block_size
    return (*token_ids, *[token_ids[-1]] * missing)


def _instruction_text(tokenizer: Any, instruction: str) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return f"{instruction}\n\n"
    turns = [{"role": "user", "content": instruction}, {"role": "assistant", "content": AGREEMENT}]
    try:
        text = str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
        )
    except TemplateError:
        text = ""
    if instruction.strip() not in text:
        raise ValueError(
            f"the chat template renders no conversation with {short_repr(instruction)} in it; accepted: a "
            "template of users' and assistants' turns. Give one: --chat-template FILE"
        )
    return text
